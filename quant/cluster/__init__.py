"""More machines: where RAY_ADDRESS names a Ray cluster, the bodies of stages run there. DVC stays on one machine."""
