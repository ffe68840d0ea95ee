"""Whether the installed release of a library is one that an adapter was tested with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True, slots=True)
class Release:
    """What is installed, and how it stands to the tested range.

    ``version`` is empty when nothing is installed; a release that counts as absent has one. ``reason`` says what was
    found, and what to do about it, unless the release is tested.
    """

    state: Literal["tested", "untested", "absent"]
    version: str = ""
    reason: str = ""

    def has(self, versions: str) -> bool:
        """Tell whether this release is among ``versions``, a PEP 440 specifier; empty means all."""
        return not versions or _contains(SpecifierSet(versions), self.version)


def installed_release(requires: str, since: str = "") -> Release:
    """Compare installed metadata with a requirement, without importing anything.

    Parameters
    ----------
    requires
        PEP 508 requirement. Extras don't matter here; a marker that does not hold means untested; pre-releases count as
        the releases that they are.
    since
        The first release that matters; an older one counts as absent. Empty: all matter.
    """
    requirement = Requirement(requires)
    try:
        metadata = distribution(requirement.name).metadata
    except PackageNotFoundError:
        return Release("absent", reason=f"{requirement.name} is not installed")
    tested = str(requirement.specifier) or "any release"
    remedy = f"install a tested release ({tested}), or set LI_PLUGINS_UNTESTED=1 at your own risk"
    found = metadata["Version"] if "Version" in metadata else ""  # noqa: SIM401 - its type has no `get` before 3.12
    if not found:  # a damaged installation
        return Release("untested", reason=f"the installed {requirement.name} has no version in its metadata; {remedy}")
    if since and _contains(SpecifierSet(f"<{since}"), found):
        return Release(
            "absent", found, f"{requirement.name} {found} is older than {since}, which brought what is patched"
        )
    if requirement.marker is not None and not requirement.marker.evaluate():
        return Release("untested", found, f"tested only where {requirement.marker}; {remedy}")
    if not _contains(requirement.specifier, found):
        return Release("untested", found, f"{requirement.name} {found} is installed; {remedy}")
    return Release("tested", found)


def _contains(specifier: SpecifierSet, release: str) -> bool:
    """Tell whether a release is in a range; one that is not PEP 440 is in no range but the empty one."""
    try:
        return specifier.contains(Version(release), prereleases=True)
    except InvalidVersion:
        return not specifier
