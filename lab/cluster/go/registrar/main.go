// Stands in for node-driver-registrar, whose module no Go proxy serves: the same two options, the same socket, the same
// answers to the kubelet. It is not the published program.
//
// It waits until the driver tells its name, then offers that name to the kubelet, and ends when the kubelet refuses it, so
// that its container starts again and the text stands in its log.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Where the published program makes its socket, too: kubelet's plugins_registry is mounted here.
const registry = "/registration"

type server struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.name,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("the kubelet refuses %s: %s", s.name, status.Error)
	}
	log.Printf("the kubelet has registered %s", s.name)
	return &registration.RegistrationStatusResponse{}, nil
}

// driverName asks until the driver answers: a name offered earlier makes the kubelet's NodeGetInfo fail.
func driverName(socket string) string {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil {
			return info.Name
		}
		log.Printf("waiting for the driver at %s: %v", socket, err)
		time.Sleep(time.Second)
	}
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket as this container sees it")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket as the kubelet sees it")
	flag.Parse()
	if *endpoint == "" {
		log.Fatal("--kubelet-registration-path is missing")
	}
	name := driverName(*address)
	socket := filepath.Join(registry, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	plugin := grpc.NewServer()
	registration.RegisterRegistrationServer(plugin, &server{name: name, endpoint: *endpoint})
	log.Printf("offering %s to the kubelet at %s", name, socket)
	log.Fatal(plugin.Serve(listener))
}
