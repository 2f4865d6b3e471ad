"""The cluster helper: what no node sees by itself, told to people by Kubernetes' own objects. It holds no key."""
