"""Pictures: files, profiles, sizes, colours.

Everything here takes and gives (B, 3, H, W) float in [0, 1]. Its face: ``io.load_image``, ``io.save_image``,
``resize.resize``, ``color.color_fix``.
"""
