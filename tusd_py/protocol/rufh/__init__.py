"""The dialect "Resumable Uploads for HTTP" of the IETF (draft-ietf-httpbis-resumable-upload)."""
