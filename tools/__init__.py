"""Commands for a trained network: upscale images, export it, time it."""
