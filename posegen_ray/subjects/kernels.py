"""Warp kernels of the fused renderer: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. `posegen_ray.subjects.warp_cache` compiles this module.

All geometry is in camera space: rays start at 0, and their directions have z = 1, so that the way
t along a ray is depth. A ray enters the posed lattice through a face of its boundary and walks from
tetrahedron to tetrahedron. Inside one, barycentric coordinates b carry it back to the canonical
pose, where its corners are c_i:

    b(t) = offset + t rate,   canonical(t) = sum_i b_i(t) c_i

with rate_i = gradient_i . direction. Offsets and gradients are worked out once for each tetrahedron
and picture (`find_maps`), and so is their adjoint (`pull_back_maps`). A ray that comes in at depth
d goes out where the first coordinate falls to zero: the way there is 1 / max_i(-rate_i / b_i(d)).
All four coordinates go through the same vector operations and nothing branches on their signs: on a
CPU a branch that cannot be foreseen costs more than the arithmetic.

A face is named from inside by 4 * tetrahedron + the corner opposite it.

Each crossing of a tetrahedron gets one sample, half-way (about one to a field cell). It moves with
the tetrahedron, so nothing flickers when the body moves past a fixed grid of depths; and a crossing
that shrinks to nothing takes its sample's weight with it, so pictures are continuous in pose and
camera.

Where the posed lattice overlaps itself (an arm before the trunk, crossed legs) a ray has several
walks; they are composited in the order of depth. A tetrahedron that is turned inside out, deep in a
bent elbow or knee, counts as a hole: walks end at it, and others begin behind it.

Knows nothing about torch.
"""

# float(1.0) declares a variable that a loop may change; a bare 1.0 would be a constant to Warp
# ruff: noqa: UP018, RUF046
# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return"
import warp as wp

from posegen_ray.subjects.vector_kernels import (
    copy_four,
    cross_four,
    fetch_four,
    fetch_map,
    pull_back_cross_four,
    pull_back_shade_four,
    pull_back_values_four,
    shade_four,
)

# fused multiply-adds keep the CPU compiler from working on four numbers at once
wp.set_module_options({"enable_backward": False, "fuse_fp": True})

LAYERS = 12  # entries kept per pixel
LAYERS_CONSTANT = wp.constant(LAYERS)
EMPTY = wp.constant(wp.uint64(2**64 - 1))  # no entry: the largest key
LOW_HALF = wp.constant(wp.uint64(2**32 - 1))
NEAR = wp.constant(0.05)  # metres; triangles nearer than this are not drawn
FAR = wp.constant(1.0e9)  # metres: a walk that is over
FLAT = wp.constant(1.0e-9)  # cubic metres (six times the volume): a tetrahedron inside out
HOLE = wp.constant(1.0e30)  # offset that marks such a tetrahedron
AT_FACE = wp.constant(1.0e-9)  # least coordinate: at the face that a ray has come through
MOST_CROSSINGS = wp.constant(4096)  # of a ray; a bound for degenerate lattices

Faces = wp.types.vector(length=LAYERS, dtype=wp.int32)
Depths = wp.types.vector(length=LAYERS, dtype=wp.float32)


# --- the field's values -------------------------------------------------------------------------


@wp.struct
class Blocks:
    """The field's values, block by block; see `posegen_ray.subjects.field.Field.block_rows`.

    A ray looks up many places in a block of 1 KB before it goes on to the next; in one large grid
    nearly every look-up would miss the processor's cache.
    """

    values: wp.array(dtype=wp.vec4)  # [64 N] red, green, blue, density logit
    rows: wp.array(dtype=wp.int32)  # [64 N] where they come from in the field; -1: nowhere
    density_scale: float  # per metre: density = scale * (sigmoid(logit) - sigmoid(empty))
    empty: float  # logits below it are no density at all


@wp.kernel
def fill_blocks(
    stored: wp.array(dtype=wp.vec4),  # [M + 1] the field's values, and that of absent vertices
    rows: wp.array(dtype=wp.int32),  # [64 N] as in `Blocks`
    values: wp.array(dtype=wp.vec4),  # [64 N] out
):
    copy_four(stored, rows, stored.shape[0] - 1, values, wp.tid())


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


# --- walking ------------------------------------------------------------------------------------


@wp.struct
class Posed:
    """The posed lattice in every picture of a batch."""

    # four rows for each tetrahedron and picture; columns are its barycentric coordinates, rows what
    # they change by along x, y and z, and their values at the camera
    maps: wp.array(dtype=wp.vec4)  # [4 B T]
    neighbours: wp.array(dtype=wp.int32)  # [4 T] what each face is called from the other side; -1
    corners: wp.array(dtype=wp.vec4)  # [40] of a cube's ten kinds of tetrahedra, in cells
    tets: wp.array(dtype=wp.vec4i)  # [T]
    brightness: wp.array(dtype=float)  # [B V] under the light
    vertices: int  # V
    first_odd: int  # from this tetrahedron on, cubes are odd
    layers: int
    early_stop: float


@wp.struct
class Crossing:
    """A ray's way through one tetrahedron."""

    row: int  # where the tetrahedron's map begins
    kind: int  # where its corners begin in `Posed.corners`
    block: int  # its cube's values
    enter: int  # corner opposite the face that the ray comes in by
    depth: float  # at which the ray comes in
    way: float  # depth out - depth in
    leave: int  # corner opposite the face that the ray goes out by
    onward: int  # what that face is called on the other side; -1: nothing is there
    place: wp.vec3  # half-way, in cells from the cube's corner
    brightness: float  # there


@wp.struct
class Sample:
    """What a ray has met half-way through a tetrahedron: written by `march`, for its adjoint."""

    row: int  # as in `Crossing`
    enter: int
    leave: int
    depth: float
    way: float
    place: wp.vec3
    brightness: float
    light: float  # share of the ray's light that comes here
    before: int  # the ray's sample before this one; -1: none


@wp.func
def kind_of(posed: Posed, tet: int):
    """Where the tetrahedron's corners begin in `Posed.corners`."""
    kind = tet % 5
    if tet >= posed.first_odd:
        kind += 5
    return 4 * kind


@wp.func
def cross_tet(posed: Posed, image: int, face: int, slope: wp.vec2, depth: float):
    """The way in by a face, at `depth`, to the far face."""
    tet = face / 4
    crossing = Crossing()
    crossing.block = tet / 5
    crossing.enter = face % 4
    crossing.row = 4 * (image * posed.tets.shape[0] + tet)
    crossing.kind = kind_of(posed, tet)
    crossing.depth = depth
    found = cross_four(
        posed.maps,
        crossing.row,
        posed.neighbours,
        posed.corners,
        crossing.kind,
        posed.tets,
        tet,
        posed.brightness,
        image * posed.vertices,
        slope,
        depth,
        AT_FACE,
    )
    crossing.place = wp.vec3(found[0], found[1], found[2])
    crossing.way = found[3]
    crossing.brightness = found[4]
    crossing.leave = wp.cast(found[5], wp.int32)
    crossing.onward = wp.cast(found[6], wp.int32)
    return crossing


@wp.func
def first_walks(front: wp.array2d(dtype=wp.uint64), pixel: int, layers: int):
    """How many walks there are, the face by which each comes in, and its depth."""
    faces = Faces(-1)
    depths = Depths(FAR)
    count = int(0)
    for layer in range(layers):
        key = front[pixel, layer]
        if key == EMPTY:
            break
        faces[layer] = int(wp.uint32(key & LOW_HALF))
        depths[layer] = wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)
        count += 1
    return count, faces, depths


@wp.func
def nearest_walk(depths: Depths, count: int):
    nearest = int(0)
    for walk in range(1, count):
        if depths[walk] < depths[nearest]:
            nearest = walk
    return nearest


@wp.func
def head_of(row: wp.vec4):
    return wp.vec3(row[0], row[1], row[2])


@wp.kernel
def march(
    image_of: wp.array(dtype=wp.int32),  # [N] image of each ray
    slopes: wp.array(dtype=wp.vec2),  # [N] x and y of its direction, whose z is 1
    pixel_of: wp.array(dtype=wp.int32),  # [N] the ray's row in `front`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS]
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
    noting: int,  # 1: samples are written down
    samples: wp.array(dtype=Sample),  # out, as many as there is room for
    taken: wp.array(dtype=wp.int32),  # [1] zero; how many samples there are
    last: wp.array(dtype=wp.int32),  # [N] out: the ray's last sample, -1: none
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    before = int(-1)
    count, faces, depths = first_walks(front, pixel_of[ray], posed.layers)
    # a crossing is shaded when the next one is known: by then its values have come from memory
    waiting = Crossing()
    going = int(1)
    for _ in range(MOST_CROSSINGS):
        crossing = Crossing()
        if going == 1:
            walk = nearest_walk(depths, count)
            depth = depths[walk]
            onward = int(-1)
            if depth >= FAR:
                going = 0
            else:
                face = faces[walk]
                if not is_hole(posed.maps, 4 * (image * posed.tets.shape[0] + face / 4)):
                    crossing = cross_tet(posed, image, face, slope, depth)
                    fetch_four(blocks.values, crossing.block, crossing.place)
                    onward = crossing.onward
                    depth += crossing.way
            faces[walk] = onward
            depths[walk] = wp.where(onward >= 0, depth, FAR)
        if waiting.way > 0.0:
            value = shade_four(
                blocks.values,
                waiting.block,
                waiting.place,
                blocks.density_scale,
                blocks.empty,
                waiting.way * norm,
            )
            if noting == 1 and value[3] < 1.0:
                slot = wp.atomic_add(taken, 0, 1)
                if slot < samples.shape[0]:
                    sample = Sample()
                    sample.row = waiting.row
                    sample.enter = waiting.enter
                    sample.leave = waiting.leave
                    sample.depth = waiting.depth
                    sample.way = waiting.way
                    sample.place = waiting.place
                    sample.brightness = waiting.brightness
                    sample.light = light
                    sample.before = before
                    samples[slot] = sample
                    before = slot
            colour += (light * (1.0 - value[3]) * waiting.brightness) * head_of(value)
            light = light * value[3]
        waiting = crossing
        if going == 0:
            break
        if light < posed.early_stop:
            going = 0
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)
    if noting == 1:
        last[ray] = before


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),  # as in `march`
    slopes: wp.array(dtype=wp.vec2),
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # what `march` gave
    samples: wp.array(dtype=Sample),
    last: wp.array(dtype=wp.int32),
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_maps and set grad_slopes
    to_field: int,  # 1: add to grad_values
    grad_maps: wp.array(dtype=wp.vec4),  # [4 B T]
    grad_slopes: wp.array(dtype=wp.vec2),  # [N]
    grad_brightness: wp.array(dtype=float),  # [B V] added to
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    grad = grad_rgba[ray]
    # what the light behind the current sample is worth: colours there, less the final alpha
    behind = -grad[3] * (1.0 - rgba[ray][3])
    grad_norm = float(0.0)
    grad_slope = wp.vec2(0.0, 0.0)
    slot = last[ray]
    while slot >= 0:
        sample = samples[slot]
        tet = sample.row / 4 - image * posed.tets.shape[0]
        if sample.before >= 0:
            following = samples[sample.before]
            fetch_four(
                blocks.values,
                (following.row / 4 - image * posed.tets.shape[0]) / 5,
                following.place,
            )
            fetch_map(posed.maps, following.row, to_pose, grad_maps)
        pull = pull_back_shade_four(
            blocks.values,
            tet / 5,
            sample.place,
            blocks.density_scale,
            blocks.empty,
            sample.way * norm,
            sample.brightness,
            sample.light,
            behind,
            grad,
        )
        behind = pull[9]
        grad_norm += pull[3] * sample.way
        grad_slope += pull_back_cross_four(
            posed.maps,
            sample.row,
            posed.corners,
            kind_of(posed, tet),
            posed.tets,
            tet,
            posed.brightness,
            image * posed.vertices,
            slope,
            norm,
            sample.depth,
            sample.way,
            sample.enter,
            sample.leave,
            pull,
            to_pose,
            grad_maps,
            grad_brightness,
        )
        if to_field == 1:
            pull_back_values_four(
                blocks.values,
                blocks.rows,
                grad_values,
                tet / 5,
                sample.place,
                wp.vec4(pull[5], pull[6], pull[7], pull[8]),
            )
        slot = sample.before
    if to_pose == 1:
        grad_slopes[ray] = grad_slope + (grad_norm / norm) * slope


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
