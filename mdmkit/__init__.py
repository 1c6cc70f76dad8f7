"""Matryoshka Diffusion Models: one diffusion process over a pyramid of resolutions.

Importing this package imports nothing heavy; take components from their own modules, for example
`from mdmkit.nn import NestedUNet` or `from mdmkit.schedules import Cosine`.
"""

__version__ = "0.1.0"
