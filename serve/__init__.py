"""What we run online: the three task deployments and their router."""
