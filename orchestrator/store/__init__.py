"""The result store: manifests, folders, the index over them, leases, provenance."""
