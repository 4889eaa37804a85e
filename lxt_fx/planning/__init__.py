"""What explanations cost on devices: parameters, flops, saved bytes and peaks by part, measured on tensors without values,
and the plan of how a model is split over devices."""
