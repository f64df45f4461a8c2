"""The ground floor: settings, object storage, registry, the local cluster and the command line."""
