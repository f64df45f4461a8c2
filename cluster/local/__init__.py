"""The local cluster: every part on this machine, on loopback, with all state under MANTA_HOME."""
