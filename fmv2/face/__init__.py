"""From face coefficients to what the nets eat: head model, camera, light and rasteriser."""
