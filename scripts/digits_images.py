#!/usr/bin/env python3
"""Turns the eval.npz of a digits zoo into a safetensors file that examples/landscape reads. Standard library only.

  digits_images.py ZOO OUT.safetensors

Tensors: `{split}_{task}_x` (uint8 [n, 196]) and `{split}_{task}_y` (uint8 [n]), as in the archive.
"""

import argparse
import ast
import json
import struct
import sys
import zipfile

TYPES = {"|u1": "U8", "|i1": "I8"}


def read_npy(raw):
    """dtype, shape and bytes of one array in NumPy's format, version 1 or 2."""
    wide = raw[6] > 1
    length = struct.unpack("<I" if wide else "<H", raw[8 : 12 if wide else 10])[0]
    start = 12 if wide else 10
    header = ast.literal_eval(raw[start : start + length].decode("latin1"))
    if header["fortran_order"]:
        sys.exit("arrays in Fortran order are not read here")
    return header["descr"], header["shape"], raw[start + length :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", help="a folder with eval.npz")
    parser.add_argument("out")
    arguments = parser.parse_args()
    zoo, out = arguments.zoo, arguments.out
    header, body = {}, b""
    with zipfile.ZipFile(f"{zoo}/eval.npz") as archive:
        for name in sorted(archive.namelist()):
            kind, shape, data = read_npy(archive.read(name))
            if kind not in TYPES:
                continue
            header[name.removesuffix(".npy")] = {
                "dtype": TYPES[kind], "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
            body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)


if __name__ == "__main__":
    main()
