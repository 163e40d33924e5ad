"""Which format a file is in, told by its bytes and never by its name.

Read: DICOM, NIfTI (plain or gzipped), PNG, JPEG, TIFF. Others are recognised only so that the refusal can name them.
"""

from __future__ import annotations

from foundation.errors import FilmUnreadable, FilmUnsupported

ACCEPTED = "DICOM, NIfTI (.nii, .nii.gz), PNG, JPEG or TIFF"
GZIP_MAGIC = b"\x1f\x8b"
FILE_META_START = b"\x02\x00\x00\x00UL\x04\x00"  # (0002,0000), DICOM's file header where the preamble was stripped
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Recognised only to be refused by name.
REFUSED_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive (archives are never unpacked; send the films inside it)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (archives are never unpacked; send the films inside it)"),
    (257, b"ustar", "a TAR archive (archives are never unpacked; send the films inside it)"),
    (4, b"ftyp", "a HEIC, AVIF or video file"),
    (0, b"\x00\x00\x00\x0cjP  ", "a bare JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a bare JPEG 2000 codestream"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (0, b"NRRD", "an NRRD volume"),
    (0, b"ObjectType", "a MetaImage volume"),
    (0, b"\x89HDF", "an HDF5 or MINC file"),
)


def sniff(data: bytes) -> str:
    """ "dicom", "nifti", "gzip", "png", "jpeg" or "tiff". Raises FilmUnsupported with the format's name for others."""
    if not data:
        raise FilmUnreadable("The file is empty.")
    if data[128:132] == b"DICM" or data.startswith(FILE_META_START):
        return "dicom"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] in TIFF_MAGICS:
        return "tiff"
    if data.startswith(GZIP_MAGIC):
        return "gzip"
    if is_nifti(data):
        return "nifti"
    raise _refusal(data)


def is_nifti(data: bytes) -> bool:
    """A single-file NIfTI-1 (magic at 344) or NIfTI-2 (magic at 4) volume, in either byte order."""
    if data[344:348] in (b"n+1\0", b"ni1\0") and data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return True
    return data[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n") and data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")


def _refusal(data: bytes) -> FilmUnsupported:
    for offset, magic, name in REFUSED_MAGICS:
        if data[offset : offset + len(magic)] == magic:
            return FilmUnsupported(f"This is {name}; send {ACCEPTED}.")
    if _looks_like_bare_dataset(data):
        return FilmUnsupported(
            "This looks like a DICOM data set without its file header, so its encoding would have to be guessed; "
            "export it again as a DICOM file (Part 10, with preamble)."
        )
    return FilmUnsupported(f"The file's content is of no known film format; send {ACCEPTED}.")


def _looks_like_bare_dataset(data: bytes) -> bool:
    """It begins with an element of group 0008, little or big endian, as data sets without a file header do."""
    return (data[:2] == b"\x08\x00" and data[3:4] in b"\x00\x01") or (data[:2] == b"\x00\x08" and data[2:3] == b"\x00")
