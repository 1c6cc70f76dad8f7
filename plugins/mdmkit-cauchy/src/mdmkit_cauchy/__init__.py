"""Cauchy's density over logsnr, as a noise schedule for mdmkit."""
