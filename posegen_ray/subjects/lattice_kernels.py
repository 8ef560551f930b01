"""Warp kernels of the posed lattice: what rays meet first, and the way back to the canonical pose.

One source for CPU and CUDA. All geometry is in camera space. `march_kernels` follows the rays from
there; the adjoint is written by hand. Knows nothing about torch.

A face is named from inside by 4 * tetrahedron + the corner opposite it.
"""

import warp as wp

wp.set_module_options({"enable_backward": False})

LAYERS = 12  # entries kept per pixel
LAYERS_CONSTANT = wp.constant(LAYERS)
EMPTY = wp.constant(wp.uint64(2**64 - 1))  # no entry: the largest key
NEAR = wp.constant(0.05)  # metres; triangles nearer than this are not drawn
FLAT = wp.constant(1.0e-9)  # cubic metres (six times the volume): a tetrahedron inside out
HOLE = wp.constant(1.0e30)  # offset that marks such a tetrahedron


@wp.func
def head_of(row: wp.vec4):
    return wp.vec3(row[0], row[1], row[2])


# --- the lattice's faces -> sorted entries per pixel ----------------------------------------------


@wp.func
def edge_side(
    first: int, second: int, ax: float, ay: float, bx: float, by: float, px: float, py: float
):
    """Twice the signed area of (a, b, p); exactly opposite for the edge's two triangles."""
    if first < second:
        return (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    return -((ax - bx) * (py - by) - (ay - by) * (px - bx))


@wp.func
def rasterise_face(
    image: int,
    face: int,
    ia: int,  # the face's vertices, counter-clockwise from outside
    ib: int,
    ic: int,
    points: wp.array2d(dtype=wp.vec3),
    focal: wp.array(dtype=float),
    principal: wp.array(dtype=wp.vec2),
    box: wp.array(dtype=wp.vec4i),
    start: wp.array(dtype=wp.int32),
    front: wp.array2d(dtype=wp.uint64),
):
    """Adds a face that looks at the camera to the entries of the pixels that it covers."""
    a = points[image, ia]
    b = points[image, ib]
    c = points[image, ic]
    if a[2] < NEAR or b[2] < NEAR or c[2] < NEAR:
        return
    normal = wp.cross(b - a, c - a)
    height = wp.dot(normal, a)
    if height >= 0.0:
        return
    f = focal[image]
    centre = principal[image]
    ax = f * a[0] / a[2] + centre[0]
    ay = f * a[1] / a[2] + centre[1]
    bx = f * b[0] / b[2] + centre[0]
    by = f * b[1] / b[2] + centre[1]
    cx = f * c[0] / c[2] + centre[0]
    cy = f * c[1] / c[2] + centre[1]
    # clamped before the conversion to int, which is undefined for huge values
    area = box[image]
    left = float(area[0])
    top = float(area[1])
    right = float(area[0] + area[2] - 1)
    bottom = float(area[1] + area[3] - 1)
    x_low = int(wp.clamp(wp.ceil(wp.min(ax, wp.min(bx, cx)) - 0.5), left, right + 1.0))
    x_high = int(wp.clamp(wp.floor(wp.max(ax, wp.max(bx, cx)) - 0.5), left - 1.0, right))
    y_low = int(wp.clamp(wp.ceil(wp.min(ay, wp.min(by, cy)) - 0.5), top, bottom + 1.0))
    y_high = int(wp.clamp(wp.floor(wp.max(ay, wp.max(by, cy)) - 0.5), top - 1.0, bottom))
    for y in range(y_low, y_high + 1):
        py = float(y) + 0.5
        for x in range(x_low, x_high + 1):
            px = float(x) + 0.5
            # in pixels (y down) a triangle that faces the camera runs clockwise
            if (
                edge_side(ib, ic, bx, by, cx, cy, px, py) <= 0.0
                and edge_side(ic, ia, cx, cy, ax, ay, px, py) <= 0.0
                and edge_side(ia, ib, ax, ay, bx, by, px, py) <= 0.0
            ):
                ray = wp.vec3((px - centre[0]) / f, (py - centre[1]) / f, 1.0)
                depth = height / wp.dot(normal, ray)
                # positive floats order like their bits: smaller key = nearer
                key = (wp.uint64(wp.cast(depth, wp.uint32)) << wp.uint64(32)) | wp.uint64(face)
                pixel = start[image] + (y - area[1]) * area[2] + (x - area[0])
                for layer in range(LAYERS_CONSTANT):
                    old = wp.atomic_min(front, pixel, layer, key)
                    key = wp.max(old, key)
                    if key == EMPTY:
                        break


@wp.kernel
def rasterise(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera space
    boundary: wp.array(dtype=wp.vec4i),  # [F] the face, then its three vertices
    focal: wp.array(dtype=float),  # [B]
    principal: wp.array(dtype=wp.vec2),  # [B]
    box: wp.array(dtype=wp.vec4i),  # [B] x, y, width, height of the pixels drawn
    start: wp.array(dtype=wp.int32),  # [B] row of the box's first pixel in `front`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS] depth bits and face, sorted
):
    image, i = wp.tid()
    face = boundary[i]
    rasterise_face(
        image, face[0], face[1], face[2], face[3], points, focal, principal, box, start, front
    )


@wp.kernel
def find_maps(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera space
    tets: wp.array(dtype=wp.vec4i),  # [T]
    maps: wp.array(dtype=wp.vec4),  # [4 B T] out; see `Posed.maps`
    holes: wp.array(dtype=wp.int32),  # [B T] out, `count` of them: T * image + tetrahedron
    count: wp.array(dtype=wp.int32),  # [1] zero
):
    image, tet = wp.tid()
    corners = tets[tet]
    p = points[image, corners[0]]
    side_1 = points[image, corners[1]] - p
    side_2 = points[image, corners[2]] - p
    side_3 = points[image, corners[3]] - p
    across = wp.cross(side_2, side_3)
    volume = wp.dot(side_1, across)
    row = 4 * (image * tets.shape[0] + tet)
    if volume <= FLAT:
        maps[row + 3] = wp.vec4(HOLE, HOLE, HOLE, HOLE)
        holes[wp.atomic_add(count, 0, 1)] = row / 4
        return
    scale = 1.0 / volume
    g1 = scale * across
    g2 = scale * wp.cross(side_3, side_1)
    g3 = scale * wp.cross(side_1, side_2)
    o1 = -wp.dot(g1, p)
    o2 = -wp.dot(g2, p)
    o3 = -wp.dot(g3, p)
    for axis in range(3):
        x1 = g1[axis]
        x2 = g2[axis]
        x3 = g3[axis]
        maps[row + axis] = wp.vec4(-x1 - x2 - x3, x1, x2, x3)
    maps[row + 3] = wp.vec4(1.0 - o1 - o2 - o3, o1, o2, o3)


@wp.func
def is_hole(maps: wp.array(dtype=wp.vec4), row: int):
    return maps[row + 3][0] == HOLE


@wp.func
def face_of(corners: wp.vec4i, corner: int):
    """The face opposite a corner, counter-clockwise from outside."""
    if corner == 0:
        return wp.vec3i(corners[1], corners[2], corners[3])
    if corner == 1:
        return wp.vec3i(corners[0], corners[3], corners[2])
    if corner == 2:
        return wp.vec3i(corners[0], corners[1], corners[3])
    return wp.vec3i(corners[0], corners[2], corners[1])


@wp.kernel
def rasterise_holes(
    holes: wp.array(dtype=wp.int32),  # [H] T * image + tetrahedron
    points: wp.array2d(dtype=wp.vec3),  # as in `rasterise`
    tets: wp.array(dtype=wp.vec4i),
    neighbours: wp.array(dtype=wp.int32),
    maps: wp.array(dtype=wp.vec4),
    focal: wp.array(dtype=float),
    principal: wp.array(dtype=wp.vec2),
    box: wp.array(dtype=wp.vec4i),
    start: wp.array(dtype=wp.int32),
    front: wp.array2d(dtype=wp.uint64),
):
    """The faces between holes and whole tetrahedra are boundary, too."""
    hole = holes[wp.tid()]
    image = hole / tets.shape[0]
    first = image * tets.shape[0]
    tet = hole - first
    for i in range(4):
        face = neighbours[4 * tet + i]
        if face >= 0:  # noqa: SIM102 (Warp would look at maps[-1])
            if not is_hole(maps, 4 * (first + face / 4)):
                corners = face_of(tets[face / 4], face % 4)
                a = corners[0]
                b = corners[1]
                c = corners[2]
                rasterise_face(image, face, a, b, c, points, focal, principal, box, start, front)


# --- the adjoint --------------------------------------------------------------------------------


@wp.func
def column(maps: wp.array(dtype=wp.vec4), row: int, corner: int):
    """What a map says of one coordinate: its gradient, and its value at the camera."""
    return wp.vec4(
        maps[row][corner], maps[row + 1][corner], maps[row + 2][corner], maps[row + 3][corner]
    )


@wp.kernel
def pull_back_maps(
    tets: wp.array(dtype=wp.vec4i),  # [T]
    points: wp.array2d(dtype=wp.vec3),  # [B, V]
    maps: wp.array(dtype=wp.vec4),  # [4 B T] what `find_maps` gave
    grad_maps: wp.array(dtype=wp.vec4),  # [4 B T]
    grad_points: wp.array2d(dtype=wp.vec3),  # [B, V] added to
):
    """The adjoint of `find_maps`.

    The gradients of coordinates 1 to 3 are the rows of the inverse of the matrix E of sides; for a
    pull D on the inverse, E is pulled by -inverse^T D inverse^T. Coordinate 0 is 1 less the others.
    """
    image, tet = wp.tid()
    row = 4 * (image * tets.shape[0] + tet)
    pull_0 = column(grad_maps, row, 0)
    pull_1 = column(grad_maps, row, 1) - pull_0
    pull_2 = column(grad_maps, row, 2) - pull_0
    pull_3 = column(grad_maps, row, 3) - pull_0
    if wp.length_sq(pull_1) + wp.length_sq(pull_2) + wp.length_sq(pull_3) == 0.0:
        return
    corners = tets[tet]
    p = points[image, corners[0]]
    g1 = head_of(column(maps, row, 1))
    g2 = head_of(column(maps, row, 2))
    g3 = head_of(column(maps, row, 3))
    d1 = head_of(pull_1) - pull_1[3] * p
    d2 = head_of(pull_2) - pull_2[3] * p
    d3 = head_of(pull_3) - pull_3[3] * p
    grad_1 = -(wp.dot(d1, g1) * g1 + wp.dot(d2, g1) * g2 + wp.dot(d3, g1) * g3)
    grad_2 = -(wp.dot(d1, g2) * g1 + wp.dot(d2, g2) * g2 + wp.dot(d3, g2) * g3)
    grad_3 = -(wp.dot(d1, g3) * g1 + wp.dot(d2, g3) * g2 + wp.dot(d3, g3) * g3)
    grad_0 = -(grad_1 + grad_2 + grad_3) - (pull_1[3] * g1 + pull_2[3] * g2 + pull_3[3] * g3)
    wp.atomic_add(grad_points, image, corners[0], grad_0)
    wp.atomic_add(grad_points, image, corners[1], grad_1)
    wp.atomic_add(grad_points, image, corners[2], grad_2)
    wp.atomic_add(grad_points, image, corners[3], grad_3)
