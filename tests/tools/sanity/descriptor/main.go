// Command descriptor prints the FileDescriptorProto of the published Go package of CSI: its names, numbers and options,
// without comments (a compiled descriptor has none).
//
//	cd tests/tools/sanity && go run ./descriptor > ../../data/csi-1.13.0.descriptor.binpb
package main

import (
	"log"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
)

func main() {
	published := protodesc.ToFileDescriptorProto(csi.File_csi_proto)
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(published)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(data); err != nil {
		log.Fatal(err)
	}
}
