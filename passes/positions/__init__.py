"""Computing some positions only: the selection moves from the logits towards the inputs."""
