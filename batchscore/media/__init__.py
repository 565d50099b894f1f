"""Images and videos by reference: where their bytes are, what their headers say, and their pixels once they are needed.

What a row names is untrusted. It is read only where the policy allows, only as far as its bounds, and by decoders of
plain raster formats.
"""
