"""Figures: one JSON line each, the median with its spread and, where there is one, the peer of the same run."""

import json
import statistics


def figure(name: str, values: list[float], unit: str, **more: object) -> float:
    """Print one figure; returns its median."""
    value = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [value, value, value]
    line = {
        "name": name,
        "value": round(value, 5),
        "unit": unit,
        "spread": round(quartiles[2] - quartiles[0], 5),
        "n": len(values),
    }
    print(json.dumps({**line, **more}), flush=True)
    return value


def compared(
    name: str, values: list[float], unit: str, peer: str, peer_values: list[float], **more: object
) -> None:
    """Print a figure beside what it is compared with."""
    peer_value = statistics.median(peer_values)
    ratio = statistics.median(values) / peer_value
    figure(name, values, unit, peer=peer, peer_value=round(peer_value, 5), ratio=round(ratio, 3), **more)
