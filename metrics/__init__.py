"""How pictures are measured: the papers' numbers, in torch alone (networks may be torchvision's)."""
