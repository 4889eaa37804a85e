"""A neutral referee: models, methods, tasks and metrics of explanations, measured side by side."""
