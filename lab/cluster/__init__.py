"""A real Kubernetes inside the lab's User-mode Linux node: programs, keys, images, and the cluster itself."""
