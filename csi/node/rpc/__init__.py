"""CSI over gRPC: requests in, answers out."""
