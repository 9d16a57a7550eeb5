"""The Kubernetes API as the operator uses it: client, leader election, observed objects, resync."""
