//! The leader's leases: how long each data node may serve.
