"""Agreement under a map between planes, as from a print or a screen to a photograph of it, taken from aside.

Such a map is nearly as stiff as an affine one, and shots of things in space do not follow it: what it explains counts
for more than what a bent map does.
"""

import numpy as np
import numpy.typing as npt

from cluster.audit.verify.affine import Grey, opencv
from cluster.audit.verify.measure import Mask, local_agreement, standardized
from cluster.audit.verify.prepare import Prepared
from cluster.audit.verify.propose import MIRRORED, PLAIN, REPROJECTION_PX, matched_features, num_cells
from pipeline.image.fingerprint import apply_dihedral

NO_PLANAR_AGREEMENT = (-1.0, 0.0)
_INLIERS_FROM = 60  # two shots of a crate, one of them from nearer, have 38
_SIDE_PX = 96  # longer side of both pictures when they are measured
_STEPS, _PRECISION = 40, 1e-4
_LEAST_SHARE = 0.1  # of a picture that has to be covered

Homography = npt.NDArray[np.float32]  # (3, 3): maps pixels of one picture to pixels of another


def planar_agreement(first: Prepared, second: Prepared) -> tuple[float, float]:
    """Return how well two pictures agree under the best map between planes that their features have.

    The map is improved by maximizing the correlation (Evangelidis and Psarakis 2008).

    Returns:
        `planar` and `planar_overlap` of Agreement; NO_PLANAR_AGREEMENT without 60 features that agree on a map.
    """
    found = max((_by_features(first, second, element) for element in (PLAIN, MIRRORED)), key=lambda each: each[0])
    num_inliers, element, homography = found
    if homography is None or num_inliers < _INLIERS_FROM:
        return NO_PLANAR_AGREEMENT
    turned = np.ascontiguousarray(apply_dihedral(second.grey, element)).astype(np.float32, copy=False)
    (one, scale), (other, other_scale) = _shrunk(first.grey), _shrunk(turned)
    start = np.diag([other_scale, other_scale, 1]) @ homography @ np.diag([1 / scale, 1 / scale, 1])
    return max(_measured(one, other, each) for each in (start, _maximized(one, other, start)))


def _by_features(first: Prepared, second: Prepared, element: int) -> tuple[int, int, Homography | None]:
    """Return the number of matched features that agree on a map, the element of DIHEDRAL, and the map."""
    cv2 = opencv()
    source, target = matched_features(first, second, element)
    if len(source) < _INLIERS_FROM:
        return 0, element, None
    cv2.setRNGSeed(0)
    homography, inside = cv2.findHomography(source, target, cv2.RANSAC, REPROJECTION_PX, maxIters=2000)
    if homography is None:
        return 0, element, None
    return num_cells(source[inside.ravel() > 0], first.grey.shape), element, homography


def _shrunk(grey: Grey) -> tuple[Grey, float]:
    scale = _SIDE_PX / max(grey.shape)
    return opencv().resize(grey, None, fx=scale, fy=scale, interpolation=opencv().INTER_AREA), scale


def _maximized(one: Grey, other: Grey, start: Homography) -> Homography:
    """Improve a map; return it as it was if that does not converge."""
    cv2 = opencv()
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _STEPS, _PRECISION)
    begun = (start / start[2, 2]).astype(np.float32)
    try:
        _, found = cv2.findTransformECC(one, other, begun, cv2.MOTION_HOMOGRAPHY, stop, None, 3)
    except cv2.error:
        return start
    return np.asarray(found, np.float32)


def _measured(one: Grey, other: Grey, homography: Homography) -> tuple[float, float]:
    """Return `local` on the first picture, and the share that is covered of the one that is covered more."""
    cv2 = opencv()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(other, homography, one.shape[::-1], flags=flags)
    mask: Mask = cv2.warpPerspective(np.ones_like(other), homography, one.shape[::-1], flags=flags) > 0.99
    back = cv2.warpPerspective(np.ones_like(one), homography, other.shape[::-1], flags=cv2.INTER_LINEAR)
    if mask.mean() < _LEAST_SHARE:
        return NO_PLANAR_AGREEMENT
    local, _ = local_agreement(standardized(one, mask), standardized(warped, mask), mask)
    return local, max(float(mask.mean()), float((back > 0.99).mean()))
