"""Rows of the table of a curve for tests."""

from __future__ import annotations

from typing import Any

CURVE_ROW: dict[str, Any] = {
    "steps": 1,
    "images": 500,
    "bpsp_base": 0.1,
    "bpsp_estimated": 5.9,
    "bpsp_coded": 5.9,
    "encode_ms": 21.5,
    "decode_ms": 22.25,
    "batch": 64,
    "batch_encode_ms": 1.0,
    "batch_decode_ms": 2.0,
    "lossless": True,
}
