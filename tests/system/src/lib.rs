//! System tests live in `tests/`: `tree` (the source tree keeps its own rules), `light` (light hosts), `lab` (emulated servers).
