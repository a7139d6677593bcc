"""The part of a JPEG that a crop needs, decoded without the rest: the only C of ours that reads untrusted bytes.

In: the bytes of a JPEG and a box. Out: pixels, or the reason why there are none. `region.py` is the door to the C;
README.md holds the threat model, the fuzz and the switch. Uses `base` alone.
"""
