"""The commands of `panoptic-ext`, a module each; tools/ and train_net.py are doors to them."""
