"""What runs on Ray Serve: the gateway, the model applications, and how both are deployed."""
