"""Records of faces, captions, masks and shading: made, ingested, and fed to a pod."""
