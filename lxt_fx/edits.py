"""What `lxt_fx.steer` does to values inside a model: `lxt_fx.edits.scale(0, units=[17])`."""

from lxt_fx.inside.steering.edits import Edit, ablate_mean, add, clamp, scale

__all__ = ["Edit", "ablate_mean", "add", "clamp", "scale"]
