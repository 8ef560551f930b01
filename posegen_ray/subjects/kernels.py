"""Warp kernels of the fused renderer: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. `posegen_ray.subjects.warp_cache` compiles this module.

All geometry is in camera space: rays start at 0, and their directions have z = 1, so that the way
t along a ray is depth. A ray enters the posed lattice through a face of its boundary and walks from
tetrahedron to tetrahedron. Inside one, barycentric coordinates b carry it back to the T-pose:

    b(t) = offset + t rate,   canonical(t) = sum_i b_i(t) rest_i

with rate_i = gradient_i . direction. Offsets and gradients are worked out once for each tetrahedron
and picture (`find_maps`), and so is their adjoint (`pull_back_maps`).

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

from posegen_ray.subjects.grid_kernels import (
    Blocks,
    find_cell,
    interpolate,
    pull_back_place,
    pull_back_values,
)

wp.set_module_options({"enable_backward": False})

LAYERS = 6  # entries kept per pixel
LAYERS_CONSTANT = wp.constant(LAYERS)
EMPTY = wp.constant(wp.uint64(2**64 - 1))  # no entry: the largest key
LOW_HALF = wp.constant(wp.uint64(2**32 - 1))
NEAR = wp.constant(0.05)  # metres; triangles nearer than this are not drawn
FAR = wp.constant(1.0e9)  # metres: a walk that is over
FLAT = wp.constant(1.0e-9)  # cubic metres (six times the volume): a tetrahedron inside out
HOLE = wp.constant(1.0e30)  # offset that marks such a tetrahedron
MOST_CROSSINGS = wp.constant(4096)  # of a ray; a bound for degenerate lattices

Tets = wp.types.vector(length=LAYERS, dtype=wp.int32)
Depths = wp.types.vector(length=LAYERS, dtype=wp.float32)


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
    tet: int,  # behind the face
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
                key = (wp.uint64(wp.cast(depth, wp.uint32)) << wp.uint64(32)) | wp.uint64(tet)
                pixel = start[image] + (y - area[1]) * area[2] + (x - area[0])
                for layer in range(LAYERS_CONSTANT):
                    old = wp.atomic_min(front, pixel, layer, key)
                    key = wp.max(old, key)
                    if key == EMPTY:
                        break


@wp.kernel
def rasterise(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera space
    faces: wp.array(dtype=wp.vec4i),  # [F] of the boundary: tetrahedron, then three vertices
    focal: wp.array(dtype=float),  # [B]
    principal: wp.array(dtype=wp.vec2),  # [B]
    box: wp.array(dtype=wp.vec4i),  # [B] x, y, width, height of the pixels drawn
    start: wp.array(dtype=wp.int32),  # [B] row of the box's first pixel in `front`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS] depth bits and tetrahedron, sorted
):
    image, i = wp.tid()
    face = faces[i]
    rasterise_face(
        image, face[0], face[1], face[2], face[3], points, focal, principal, box, start, front
    )


@wp.kernel
def find_maps(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera space
    tets: wp.array(dtype=wp.vec4i),  # [T]
    maps: wp.array3d(dtype=wp.vec4),  # [B, T, 3] out; see `Posed.maps`
):
    image, tet = wp.tid()
    corners = tets[tet]
    p = points[image, corners[0]]
    side_1 = points[image, corners[1]] - p
    side_2 = points[image, corners[2]] - p
    side_3 = points[image, corners[3]] - p
    across = wp.cross(side_2, side_3)
    volume = wp.dot(side_1, across)
    if volume <= FLAT:
        maps[image, tet, 0] = wp.vec4(0.0, 0.0, 0.0, HOLE)
        return
    scale = 1.0 / volume
    g1 = scale * across
    g2 = scale * wp.cross(side_3, side_1)
    g3 = scale * wp.cross(side_1, side_2)
    maps[image, tet, 0] = wp.vec4(g1[0], g1[1], g1[2], -wp.dot(g1, p))
    maps[image, tet, 1] = wp.vec4(g2[0], g2[1], g2[2], -wp.dot(g2, p))
    maps[image, tet, 2] = wp.vec4(g3[0], g3[1], g3[2], -wp.dot(g3, p))


@wp.func
def is_hole(row: wp.vec4):
    return row[3] == HOLE


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
    points: wp.array2d(dtype=wp.vec3),  # as in `rasterise`
    tets: wp.array(dtype=wp.vec4i),
    neighbours: wp.array(dtype=wp.vec4i),
    maps: wp.array3d(dtype=wp.vec4),
    focal: wp.array(dtype=float),
    principal: wp.array(dtype=wp.vec2),
    box: wp.array(dtype=wp.vec4i),
    start: wp.array(dtype=wp.int32),
    front: wp.array2d(dtype=wp.uint64),
):
    """The faces between holes and whole tetrahedra are boundary, too."""
    image, tet = wp.tid()
    if not is_hole(maps[image, tet, 0]):
        return
    around = neighbours[tet]
    for i in range(4):
        other = around[i]
        if other >= 0:  # noqa: SIM102 (Warp would look at maps[-1])
            if not is_hole(maps[image, other, 0]):
                back = neighbours[other]
                for j in range(4):
                    if back[j] == tet:
                        face = face_of(tets[other], j)
                        a = face[0]
                        b = face[1]
                        c = face[2]
                        rasterise_face(
                            image, other, a, b, c, points, focal, principal, box, start, front
                        )


# --- walking ------------------------------------------------------------------------------------


@wp.struct
class Posed:
    """The posed lattice in every picture of a batch."""

    # row i: the gradient (x, y, z) of barycentric coordinate i + 1, and its value at the camera;
    # coordinate 0 is 1 less the others
    maps: wp.array3d(dtype=wp.vec4)  # [B, T, 3]
    neighbours: wp.array(dtype=wp.vec4i)  # [T] across the face opposite each corner; -1: none
    # in cells from the cube's corner: corner 0, then the sides from it to corners 1, 2 and 3
    patterns: wp.array2d(dtype=wp.vec3)  # [10, 4]
    first_odd: int  # from this tetrahedron on, cubes are odd
    layers: int
    early_stop: float


@wp.struct
class Crossing:
    """A ray's way through one tetrahedron."""

    begin: float  # depths; end < begin: the ray misses it
    end: float
    enter: int  # corner opposite the face of either end
    leave: int
    start: wp.vec3  # place in the block (cells) at t = 0
    velocity: wp.vec3  # its change with t
    rate: wp.vec4  # change of the barycentric coordinates with t


@wp.func
def pattern_of(posed: Posed, tet: int):
    pattern = tet % 5
    if tet >= posed.first_odd:
        pattern = pattern + 5
    return pattern


@wp.func
def along(row: wp.vec4, slope: wp.vec2):
    return row[0] * slope[0] + row[1] * slope[1] + row[2]


@wp.func
def cross_tet(posed: Posed, image: int, tet: int, slope: wp.vec2):
    row_1 = posed.maps[image, tet, 0]
    row_2 = posed.maps[image, tet, 1]
    row_3 = posed.maps[image, tet, 2]
    o1 = row_1[3]
    o2 = row_2[3]
    o3 = row_3[3]
    r1 = along(row_1, slope)
    r2 = along(row_2, slope)
    r3 = along(row_3, slope)
    offset = wp.vec4(1.0 - o1 - o2 - o3, o1, o2, o3)
    crossing = Crossing()
    crossing.rate = wp.vec4(-r1 - r2 - r3, r1, r2, r3)
    begin = float(-FAR)
    end = float(FAR)
    for i in range(4):
        rate = crossing.rate[i]
        t = -offset[i] / rate  # a rate of zero gives an infinite t, which never counts
        if rate > 0.0 and t > begin:
            begin = t
            crossing.enter = i
        if rate < 0.0 and t < end:
            end = t
            crossing.leave = i
    crossing.begin = begin
    crossing.end = end
    pattern = pattern_of(posed, tet)
    side_1 = posed.patterns[pattern, 1]
    side_2 = posed.patterns[pattern, 2]
    side_3 = posed.patterns[pattern, 3]
    crossing.start = posed.patterns[pattern, 0] + o1 * side_1 + o2 * side_2 + o3 * side_3
    crossing.velocity = r1 * side_1 + r2 * side_2 + r3 * side_3
    return crossing


@wp.func
def first_walks(front: wp.array2d(dtype=wp.uint64), ray: int, layers: int):
    """The tetrahedron that each walk begins in, and the depth at which it does."""
    tets = Tets(-1)
    depths = Depths(FAR)
    for layer in range(LAYERS_CONSTANT):
        if layer < layers:
            key = front[ray, layer]
            if key != EMPTY:
                tets[layer] = int(wp.uint32(key & LOW_HALF))
                depths[layer] = wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)
    return tets, depths


@wp.func
def nearest_walk(depths: Depths):
    nearest = int(0)
    for walk in range(1, LAYERS_CONSTANT):
        if depths[walk] < depths[nearest]:
            nearest = walk
    return nearest


@wp.kernel
def march(
    image_of: wp.array(dtype=wp.int32),  # [N] image of each ray
    slopes: wp.array(dtype=wp.vec2),  # [N] x and y of its direction, whose z is 1
    front: wp.array2d(dtype=wp.uint64),  # [N, LAYERS]
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    tets, depths = first_walks(front, ray, posed.layers)
    several = depths[1] < FAR
    for _ in range(MOST_CROSSINGS):
        walk = int(0)
        if several:
            walk = nearest_walk(depths)
        depth = depths[walk]
        if depth >= FAR:
            break
        tet = tets[walk]
        onward = int(-1)
        end = depth
        if not is_hole(posed.maps[image, tet, 0]):
            crossing = cross_tet(posed, image, tet, slope)
            end = wp.max(crossing.end, depth)
            onward = posed.neighbours[tet][crossing.leave]
            way = crossing.end - crossing.begin
            if way > 0.0:
                t = crossing.begin + 0.5 * way
                cell = find_cell(tet / 5, crossing.start + t * crossing.velocity)
                value = interpolate(blocks, cell)
                density = blocks.density_scale / (1.0 + wp.exp(-value[3]))
                passed = wp.exp(-density * way * norm)
                colour += (light * (1.0 - passed)) * wp.vec3(value[0], value[1], value[2])
                light = light * passed
        tets[walk] = onward
        depths[walk] = FAR
        if onward >= 0:
            depths[walk] = end
        if light < posed.early_stop:
            break
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)


@wp.func
def towards(corner: int):
    """What the gradient of a corner's coordinate is of those of coordinates 1 to 3."""
    if corner == 0:
        return wp.vec3(-1.0, -1.0, -1.0)
    unit = wp.vec3(0.0, 0.0, 0.0)
    unit[corner - 1] = 1.0
    return unit


@wp.func
def pull_back_crossing(
    posed: Posed,
    image: int,
    tet: int,
    slope: wp.vec2,
    crossing: Crossing,
    pull: wp.vec3,  # d(loss)/d(the sample's place in the block)
    grad_way: float,  # d(loss)/d(crossing.end - crossing.begin)
    grad_maps: wp.array3d(dtype=wp.vec4),
):
    """Adds the gradient of a crossing to the tetrahedron's map; returns the slope's.

    The ends obey coordinate(end) = 0 for the corner opposite their face.
    """
    pattern = pattern_of(posed, tet)
    side_1 = posed.patterns[pattern, 1]
    side_2 = posed.patterns[pattern, 2]
    side_3 = posed.patterns[pattern, 3]
    half = 0.5 * wp.dot(pull, crossing.velocity)  # the sample moves with either end
    enter = ((half - grad_way) / crossing.rate[crossing.enter]) * towards(crossing.enter)
    leave = ((half + grad_way) / crossing.rate[crossing.leave]) * towards(crossing.leave)
    offset = wp.vec3(wp.dot(side_1, pull), wp.dot(side_2, pull), wp.dot(side_3, pull))
    rate = 0.5 * (crossing.begin + crossing.end) * offset
    offset -= enter + leave
    rate -= crossing.begin * enter + crossing.end * leave
    result = wp.vec2(0.0, 0.0)
    for i in range(3):
        row = posed.maps[image, tet, i]
        result += rate[i] * wp.vec2(row[0], row[1])
        wp.atomic_add(
            grad_maps,
            image,
            tet,
            i,
            wp.vec4(rate[i] * slope[0], rate[i] * slope[1], rate[i], offset[i]),
        )
    return result


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),  # as in `march`
    slopes: wp.array(dtype=wp.vec2),
    front: wp.array2d(dtype=wp.uint64),
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # [N] what `march` gave
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_maps and set grad_slopes
    to_field: int,  # 1: add to grad_values
    grad_maps: wp.array3d(dtype=wp.vec4),  # [B, T, 3]
    grad_slopes: wp.array(dtype=wp.vec2),  # [N]
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    out = rgba[ray]
    grad = grad_rgba[ray]
    grad_colour = wp.vec3(grad[0], grad[1], grad[2])
    # what the light behind the current sample is worth: later samples' colour, less the final alpha
    behind = wp.dot(grad_colour, wp.vec3(out[0], out[1], out[2])) - grad[3] * (1.0 - out[3])
    light = float(1.0)
    grad_norm = float(0.0)
    grad_slope = wp.vec2(0.0, 0.0)
    tets, depths = first_walks(front, ray, posed.layers)
    several = depths[1] < FAR
    for _ in range(MOST_CROSSINGS):
        walk = int(0)
        if several:
            walk = nearest_walk(depths)
        depth = depths[walk]
        if depth >= FAR:
            break
        tet = tets[walk]
        onward = int(-1)
        end = depth
        if not is_hole(posed.maps[image, tet, 0]):
            crossing = cross_tet(posed, image, tet, slope)
            end = wp.max(crossing.end, depth)
            onward = posed.neighbours[tet][crossing.leave]
            way = crossing.end - crossing.begin
            if way > 0.0:
                t = crossing.begin + 0.5 * way
                cell = find_cell(tet / 5, crossing.start + t * crossing.velocity)
                value = interpolate(blocks, cell)
                sigmoid = 1.0 / (1.0 + wp.exp(-value[3]))
                density = blocks.density_scale * sigmoid
                length = way * norm
                passed = wp.exp(-density * length)
                weight = light * (1.0 - passed)
                light = light * passed
                worth = wp.dot(grad_colour, wp.vec3(value[0], value[1], value[2]))
                behind = behind - weight * worth
                grad_depth = light * worth - behind  # d(loss) / d(density * length)
                grad_value = wp.vec4(
                    weight * grad[0],
                    weight * grad[1],
                    weight * grad[2],
                    grad_depth * length * density * (1.0 - sigmoid),
                )
                if to_field == 1:
                    pull_back_values(blocks, grad_values, cell, grad_value)
                if to_pose == 1:
                    grad_norm += grad_depth * density * way
                    grad_slope += pull_back_crossing(
                        posed,
                        image,
                        tet,
                        slope,
                        crossing,
                        pull_back_place(blocks, cell, grad_value),
                        grad_depth * density * norm,
                        grad_maps,
                    )
        tets[walk] = onward
        depths[walk] = FAR
        if onward >= 0:
            depths[walk] = end
        if light < posed.early_stop:
            break
    if to_pose == 1:
        grad_slopes[ray] = grad_slope + (grad_norm / norm) * slope


@wp.func
def head_of(row: wp.vec4):
    return wp.vec3(row[0], row[1], row[2])


@wp.kernel
def pull_back_maps(
    tets: wp.array(dtype=wp.vec4i),  # [T]
    points: wp.array2d(dtype=wp.vec3),  # [B, V]
    maps: wp.array3d(dtype=wp.vec4),  # [B, T, 3] what `find_maps` gave
    grad_maps: wp.array3d(dtype=wp.vec4),  # [B, T, 3]
    grad_points: wp.array2d(dtype=wp.vec3),  # [B, V] added to
):
    """The adjoint of `find_maps`.

    The gradients are the rows of the inverse of the matrix E of sides; for a pull D on the
    inverse, E is pulled by -inverse^T D inverse^T.
    """
    image, tet = wp.tid()
    row_1 = grad_maps[image, tet, 0]
    row_2 = grad_maps[image, tet, 1]
    row_3 = grad_maps[image, tet, 2]
    if wp.length_sq(row_1) + wp.length_sq(row_2) + wp.length_sq(row_3) == 0.0:
        return
    corners = tets[tet]
    p = points[image, corners[0]]
    g1 = head_of(maps[image, tet, 0])
    g2 = head_of(maps[image, tet, 1])
    g3 = head_of(maps[image, tet, 2])
    d1 = head_of(row_1) - row_1[3] * p
    d2 = head_of(row_2) - row_2[3] * p
    d3 = head_of(row_3) - row_3[3] * p
    pull_1 = -(wp.dot(d1, g1) * g1 + wp.dot(d2, g1) * g2 + wp.dot(d3, g1) * g3)
    pull_2 = -(wp.dot(d1, g2) * g1 + wp.dot(d2, g2) * g2 + wp.dot(d3, g2) * g3)
    pull_3 = -(wp.dot(d1, g3) * g1 + wp.dot(d2, g3) * g2 + wp.dot(d3, g3) * g3)
    pull_0 = -(pull_1 + pull_2 + pull_3) - (row_1[3] * g1 + row_2[3] * g2 + row_3[3] * g3)
    wp.atomic_add(grad_points, image, corners[0], pull_0)
    wp.atomic_add(grad_points, image, corners[1], pull_1)
    wp.atomic_add(grad_points, image, corners[2], pull_2)
    wp.atomic_add(grad_points, image, corners[3], pull_3)
