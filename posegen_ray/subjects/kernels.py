"""Warp kernels of the fused renderer: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. `posegen_ray.subjects.warp_cache` compiles this module.

A ray enters the posed lattice through a face of its boundary and walks from tetrahedron to
tetrahedron. Inside one, barycentric coordinates b carry it back to the T-pose exactly:

    b(t) = offset + t rate,   canonical(t) = sum_i b_i(t) rest_i

Each crossing of a tetrahedron gets two samples, at the points of Gauss and Legendre. They move with
the tetrahedron, so nothing flickers when the body moves past a fixed grid of depths; and a crossing
that shrinks to nothing takes its samples' weight with it, so pictures are continuous in pose and
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
    Grid,
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
MOST_CROSSINGS = wp.constant(4096)  # of a ray; a bound for degenerate lattices
# Gauss-Legendre points of order two, as shares of the way
FIRST_SHARE = wp.constant(0.21132487)
SECOND_SHARE = wp.constant(0.78867513)

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


@wp.func
def six_volumes(points: wp.array2d(dtype=wp.vec3), image: int, corners: wp.vec4i):
    a = points[image, corners[0]]
    return wp.dot(
        points[image, corners[1]] - a,
        wp.cross(points[image, corners[2]] - a, points[image, corners[3]] - a),
    )


@wp.kernel
def find_flipped(
    points: wp.array2d(dtype=wp.vec3),  # [B, V]
    tets: wp.array(dtype=wp.vec4i),  # [T]
    flipped: wp.array2d(dtype=wp.uint8),  # [B, T] out: 1 where the pose turns it inside out
):
    image, tet = wp.tid()
    flipped[image, tet] = wp.where(
        six_volumes(points, image, tets[tet]) <= FLAT, wp.uint8(1), wp.uint8(0)
    )


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
    flipped: wp.array2d(dtype=wp.uint8),
    focal: wp.array(dtype=float),
    principal: wp.array(dtype=wp.vec2),
    box: wp.array(dtype=wp.vec4i),
    start: wp.array(dtype=wp.int32),
    front: wp.array2d(dtype=wp.uint64),
):
    """The faces between flipped tetrahedra and others are boundary, too."""
    image, tet = wp.tid()
    if flipped[image, tet] == wp.uint8(0):
        return
    around = neighbours[tet]
    for i in range(4):
        other = around[i]
        if other >= 0:  # noqa: SIM102 (Warp would look at flipped[-1])
            if flipped[image, other] == wp.uint8(0):
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
class Lattice:
    """The posed tetrahedra of every image of a batch."""

    points: wp.array2d(dtype=wp.vec3)  # [B, V] world
    rest: wp.array(dtype=wp.vec3)  # [V] in the grid's cells
    tets: wp.array(dtype=wp.vec4i)  # [T]
    neighbours: wp.array(dtype=wp.vec4i)  # [T] across the face opposite each corner; -1: none
    layers: int
    early_stop: float


@wp.struct
class Crossing:
    """A ray's way through one tetrahedron."""

    begin: float  # depths; end < begin: the ray misses it, or it is inside out
    end: float
    enter: int  # corner opposite the face of either end
    leave: int
    start: wp.vec3  # place in the grid (cells) at t = 0
    velocity: wp.vec3  # its change with t
    offset: wp.vec4  # barycentric coordinates at t = 0
    rate: wp.vec4  # their change with t


@wp.struct
class Shape:
    """A posed tetrahedron: three sides from its first corner, and what turns places into
    barycentric coordinates."""

    corner: wp.vec3
    gradient_1: wp.vec3  # of the barycentric coordinates 1 to 3 in the world
    gradient_2: wp.vec3
    gradient_3: wp.vec3
    volume: float  # six times; not positive: inside out, a hole


@wp.func
def shape_of(lattice: Lattice, image: int, corners: wp.vec4i):
    shape = Shape()
    p = lattice.points[image, corners[0]]
    side_1 = lattice.points[image, corners[1]] - p
    side_2 = lattice.points[image, corners[2]] - p
    side_3 = lattice.points[image, corners[3]] - p
    across = wp.cross(side_2, side_3)
    volume = wp.dot(side_1, across)
    scale = 1.0 / wp.max(volume, FLAT)
    shape.corner = p
    shape.volume = volume
    shape.gradient_1 = scale * across
    shape.gradient_2 = scale * wp.cross(side_3, side_1)
    shape.gradient_3 = scale * wp.cross(side_1, side_2)
    return shape


@wp.func
def cross_shape(
    lattice: Lattice, corners: wp.vec4i, shape: Shape, origin: wp.vec3, direction: wp.vec3
):
    crossing = Crossing()
    from_p = origin - shape.corner
    o1 = wp.dot(shape.gradient_1, from_p)
    o2 = wp.dot(shape.gradient_2, from_p)
    o3 = wp.dot(shape.gradient_3, from_p)
    r1 = wp.dot(shape.gradient_1, direction)
    r2 = wp.dot(shape.gradient_2, direction)
    r3 = wp.dot(shape.gradient_3, direction)
    crossing.offset = wp.vec4(1.0 - o1 - o2 - o3, o1, o2, o3)
    crossing.rate = wp.vec4(-r1 - r2 - r3, r1, r2, r3)
    rest = lattice.rest[corners[0]]
    edge_1 = lattice.rest[corners[1]] - rest
    edge_2 = lattice.rest[corners[2]] - rest
    edge_3 = lattice.rest[corners[3]] - rest
    crossing.start = rest + o1 * edge_1 + o2 * edge_2 + o3 * edge_3
    crossing.velocity = r1 * edge_1 + r2 * edge_2 + r3 * edge_3
    begin = float(-FAR)
    end = float(FAR)
    for i in range(4):
        rate = crossing.rate[i]
        t = -crossing.offset[i] / rate  # a rate of zero gives an infinite t, which never counts
        if rate > 0.0 and t > begin:
            begin = t
            crossing.enter = i
        if rate < 0.0 and t < end:
            end = t
            crossing.leave = i
    crossing.begin = begin
    crossing.end = end
    return crossing


@wp.func
def depth_of(key: wp.uint64):
    return wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)


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
    origins: wp.array(dtype=wp.vec3),  # [B]
    directions: wp.array(dtype=wp.vec3),  # [N] z = 1 in camera space
    front: wp.array2d(dtype=wp.uint64),  # [N, LAYERS]
    lattice: Lattice,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    norm = wp.length(direction)
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    tets = Tets(-1)  # where each walk is
    depths = Depths(FAR)  # and where it entered that tetrahedron
    for layer in range(LAYERS_CONSTANT):
        if layer < lattice.layers and front[ray, layer] != EMPTY:
            tets[layer] = int(wp.uint32(front[ray, layer] & LOW_HALF))
            depths[layer] = depth_of(front[ray, layer])
    several = depths[1] < FAR
    for _ in range(MOST_CROSSINGS):
        walk = int(0)
        if several:
            walk = nearest_walk(depths)
        depth = depths[walk]
        if depth >= FAR:
            break
        corners = lattice.tets[tets[walk]]
        shape = shape_of(lattice, image, corners)
        onward = int(-1)
        end = depth
        if shape.volume > FLAT:
            crossing = cross_shape(lattice, corners, shape, origin, direction)
            end = wp.max(crossing.end, depth)
            onward = lattice.neighbours[tets[walk]][crossing.leave]
            way = crossing.end - crossing.begin
            if way > 0.0:
                length = 0.5 * way * norm
                for sample in range(2):
                    share = FIRST_SHARE
                    if sample == 1:
                        share = SECOND_SHARE
                    t = crossing.begin + share * way
                    cell = find_cell(grid, crossing.start + t * crossing.velocity)
                    if cell.r00 >= 0:
                        value = interpolate(grid, cell)
                        density = grid.density_scale / (1.0 + wp.exp(-value[3]))
                        passed = wp.exp(-density * length)
                        colour += (light * (1.0 - passed)) * wp.vec3(value[0], value[1], value[2])
                        light = light * passed
        tets[walk] = onward
        depths[walk] = FAR
        if onward >= 0:
            depths[walk] = end
        if light < lattice.early_stop:
            break
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)


@wp.struct
class RayGradient:
    origin: wp.vec3
    direction: wp.vec3


@wp.func
def corner_gradient(shape: Shape, corner: int):
    """Gradient of a corner's barycentric coordinate in the world."""
    if corner == 1:
        return shape.gradient_1
    if corner == 2:
        return shape.gradient_2
    if corner == 3:
        return shape.gradient_3
    return -(shape.gradient_1 + shape.gradient_2 + shape.gradient_3)


@wp.func
def pull_back_crossing(
    lattice: Lattice,
    image: int,
    corners: wp.vec4i,
    shape: Shape,
    crossing: Crossing,
    pull: wp.vec3,  # sum over samples of d(loss)/d(canonical place in cells)
    pull_t: wp.vec3,  # the same, each times its depth
    grad_begin: float,  # d(loss)/d(crossing.begin)
    grad_end: float,
    grad_points: wp.array2d(dtype=wp.vec3),
):
    """Adds the gradient of a crossing to the lattice's points; returns the ray's.

    A sample's place in the world pulls with `here` (constant) and `here_t` (times depth); moving a
    corner i by v is like moving the place by -b_i v. The ends obey b(end) = 0 for their corner.
    """
    rest = lattice.rest[corners[0]]
    edge_1 = lattice.rest[corners[1]] - rest
    edge_2 = lattice.rest[corners[2]] - rest
    edge_3 = lattice.rest[corners[3]] - rest
    here = (
        wp.dot(edge_1, pull) * shape.gradient_1
        + wp.dot(edge_2, pull) * shape.gradient_2
        + wp.dot(edge_3, pull) * shape.gradient_3
    )
    here_t = (
        wp.dot(edge_1, pull_t) * shape.gradient_1
        + wp.dot(edge_2, pull_t) * shape.gradient_2
        + wp.dot(edge_3, pull_t) * shape.gradient_3
    )
    enter = corner_gradient(shape, crossing.enter) * (grad_begin / crossing.rate[crossing.enter])
    leave = corner_gradient(shape, crossing.leave) * (grad_end / crossing.rate[crossing.leave])
    here -= enter + leave
    here_t -= crossing.begin * enter + crossing.end * leave
    for i in range(4):
        wp.atomic_add(
            grad_points,
            image,
            corners[i],
            -(crossing.offset[i] * here + crossing.rate[i] * here_t),
        )
    result = RayGradient()
    result.origin = here
    result.direction = here_t
    return result


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    front: wp.array2d(dtype=wp.uint64),
    lattice: Lattice,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] what `march` gave
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_points and set grad_origins, grad_directions
    to_field: int,  # 1: add to grad_values
    grad_points: wp.array2d(dtype=wp.vec3),  # [B, V]
    grad_origins: wp.array(dtype=wp.vec3),  # [N], per ray
    grad_directions: wp.array(dtype=wp.vec3),  # [N]
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    norm = wp.length(direction)
    out = rgba[ray]
    grad = grad_rgba[ray]
    grad_colour = wp.vec3(grad[0], grad[1], grad[2])
    # what the light behind the current sample is worth: later samples' colour, less the final alpha
    behind = wp.dot(grad_colour, wp.vec3(out[0], out[1], out[2])) - grad[3] * (1.0 - out[3])
    light = float(1.0)
    grad_norm = float(0.0)
    grad_origin = wp.vec3(0.0, 0.0, 0.0)
    grad_direction = wp.vec3(0.0, 0.0, 0.0)
    tets = Tets(-1)
    depths = Depths(FAR)
    for layer in range(LAYERS_CONSTANT):
        if layer < lattice.layers and front[ray, layer] != EMPTY:
            tets[layer] = int(wp.uint32(front[ray, layer] & LOW_HALF))
            depths[layer] = depth_of(front[ray, layer])
    several = depths[1] < FAR
    for _ in range(MOST_CROSSINGS):
        walk = int(0)
        if several:
            walk = nearest_walk(depths)
        depth = depths[walk]
        if depth >= FAR:
            break
        corners = lattice.tets[tets[walk]]
        shape = shape_of(lattice, image, corners)
        onward = int(-1)
        end = depth
        if shape.volume > FLAT:
            crossing = cross_shape(lattice, corners, shape, origin, direction)
            end = wp.max(crossing.end, depth)
            onward = lattice.neighbours[tets[walk]][crossing.leave]
            way = crossing.end - crossing.begin
            if way > 0.0:
                length = 0.5 * way * norm
                pull = wp.vec3(0.0, 0.0, 0.0)
                pull_t = wp.vec3(0.0, 0.0, 0.0)
                grad_begin = float(0.0)
                grad_end = float(0.0)
                seen = int(0)
                for sample in range(2):
                    share = FIRST_SHARE
                    if sample == 1:
                        share = SECOND_SHARE
                    t = crossing.begin + share * way
                    cell = find_cell(grid, crossing.start + t * crossing.velocity)
                    if cell.r00 >= 0:
                        value = interpolate(grid, cell)
                        sigmoid = 1.0 / (1.0 + wp.exp(-value[3]))
                        density = grid.density_scale * sigmoid
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
                            pull_back_values(grad_values, cell, grad_value)
                        if to_pose == 1:
                            seen = 1
                            place = pull_back_place(grid, cell, grad_value)
                            pull += place
                            pull_t += t * place
                            along = wp.dot(place, crossing.velocity)
                            grad_length = grad_depth * density
                            grad_norm += grad_length * 0.5 * way
                            grad_begin += (1.0 - share) * along - grad_length * 0.5 * norm
                            grad_end += share * along + grad_length * 0.5 * norm
                if seen == 1:
                    moved = pull_back_crossing(
                        lattice,
                        image,
                        corners,
                        shape,
                        crossing,
                        pull,
                        pull_t,
                        grad_begin,
                        grad_end,
                        grad_points,
                    )
                    grad_origin += moved.origin
                    grad_direction += moved.direction
        tets[walk] = onward
        depths[walk] = FAR
        if onward >= 0:
            depths[walk] = end
        if light < lattice.early_stop:
            break
    if to_pose == 1:
        grad_origins[ray] = grad_origin
        grad_directions[ray] = grad_direction + (grad_norm / norm) * direction
