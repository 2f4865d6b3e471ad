"""The API server: requests, resources that are kept current by watches, and the lease of the one helper that acts."""
