"""Reading the `config.json` of diffusers and transformers: what a net cannot do is refused."""

from collections.abc import Collection, Mapping
from typing import Any

from fmv2.errors import UserError


def check_fields(
    net: str,
    config: Mapping[str, Any],
    *,
    read: Collection[str],
    fixed: Mapping[str, Any],
    inert: Collection[str] = (),
    faults: Collection[str] = (),
) -> None:
    """Refuses a configuration that asks for arithmetic which a net does not have.

    Args:
      net: what to call the net in the error.
      config: the file's fields. Those that begin with an underscore are its own bookkeeping.
      read: fields that the net is built from, and therefore must be there.
      fixed: fields for which the net knows one value alone; absent means that value.
      inert: fields that change nothing here.
      faults: what else the caller found wrong.
    Raises:
      UserError: every missing field, every fixed one with another value, every unknown one that is
        switched on.
    """
    found = [*faults]
    found += [f"{name} is missing" for name in read if name not in config]
    for name, value in config.items():
        if name.startswith("_") or name in read or name in inert:
            continue
        if name not in fixed and value not in (None, False):
            found.append(f"{name}={value!r} is unknown")
        elif name in fixed and value != fixed[name]:
            found.append(f"{name}={value!r} is not supported, only {fixed[name]!r}")
    if found:
        raise UserError(f"{net} config: " + "; ".join(found))
