"""The adapter to ComfyUI: what its MODEL, VAE, IMAGE, files and progress are to ``op4ksr_core``."""
