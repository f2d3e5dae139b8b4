"""An artifact behind HTTP, in the Open Inference Protocol."""
