"""Warp kernels of the fused renderer and of fitting: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. `posegen_ray.subjects.warp_cache` compiles this module.

A ray enters the posed cage through a triangle. There the cage's vertices give an affine map back to
the T-pose, the *chart*, which holds until the ray leaves:

    canonical(t) = rest(b) + inverse(b) (origin + t direction - point(b)),   b = barycentrics of entry

Samples lie at depths t = (k + 1/2) step for whole k, whatever the entry's depth.

Knows nothing about torch.
"""

# float(1.0) declares a variable that a loop may change; a bare 1.0 would be a constant to Warp
# ruff: noqa: UP018
# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return"
import warp as wp

wp.set_module_options({"enable_backward": False})

LAYERS = 4  # entries (and exits) kept per pixel
LAYERS_CONSTANT = wp.constant(LAYERS)
EMPTY = wp.constant(wp.uint64(2**64 - 1))  # no entry: the largest key
LOW_HALF = wp.constant(wp.uint64(2**32 - 1))
NEAR = wp.constant(0.05)  # metres; triangles nearer than this are not drawn
GRAZING = wp.constant(0.02)  # cosine below which the entry's barycentrics count as fixed


# --- the cage's triangles -> sorted entries and exits per pixel -----------------------------------


@wp.func
def edge_side(
    first: int, second: int, ax: float, ay: float, bx: float, by: float, px: float, py: float
):
    """Twice the signed area of (a, b, p); exactly opposite for the edge's two triangles."""
    if first < second:
        return (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    return -((ax - bx) * (py - by) - (ay - by) * (px - bx))


@wp.kernel
def rasterise(
    points: wp.array2d(dtype=wp.vec3),  # [B, C] camera space
    faces: wp.array2d(dtype=wp.int32),  # [T, 3]
    focal: wp.array(dtype=float),  # [B]
    principal: wp.array(dtype=wp.vec2),  # [B]
    box: wp.array(dtype=wp.vec4i),  # [B] x, y, width, height of the pixels drawn
    start: wp.array(dtype=wp.int32),  # [B] row of the box's first pixel in `front` and `back`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS] depth bits and triangle, nearest first
    back: wp.array2d(dtype=wp.uint64),
):
    image, face = wp.tid()
    ia = faces[face, 0]
    ib = faces[face, 1]
    ic = faces[face, 2]
    a = points[image, ia]
    b = points[image, ib]
    c = points[image, ic]
    if a[2] < NEAR or b[2] < NEAR or c[2] < NEAR:
        return
    normal = wp.cross(b - a, c - a)
    height = wp.dot(normal, a)
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
    facing = height < 0.0
    # in pixels (y down) a triangle that faces the camera runs clockwise
    sign = float(1.0)
    if facing:
        sign = float(-1.0)
    for y in range(y_low, y_high + 1):
        py = float(y) + 0.5
        for x in range(x_low, x_high + 1):
            px = float(x) + 0.5
            if (
                sign * edge_side(ib, ic, bx, by, cx, cy, px, py) >= 0.0
                and sign * edge_side(ic, ia, cx, cy, ax, ay, px, py) >= 0.0
                and sign * edge_side(ia, ib, ax, ay, bx, by, px, py) >= 0.0
            ):
                ray = wp.vec3((px - centre[0]) / f, (py - centre[1]) / f, 1.0)
                depth = height / wp.dot(normal, ray)
                # positive floats order like their bits: smaller key = nearer
                key = (wp.uint64(wp.cast(depth, wp.uint32)) << wp.uint64(32)) | wp.uint64(face)
                pixel = start[image] + (y - area[1]) * area[2] + (x - area[0])
                for layer in range(LAYERS_CONSTANT):
                    old = EMPTY
                    if facing:
                        old = wp.atomic_min(front, pixel, layer, key)
                    else:
                        old = wp.atomic_min(back, pixel, layer, key)
                    key = wp.max(old, key)
                    if key == EMPTY:
                        break


# --- field lookup -------------------------------------------------------------------------------


@wp.struct
class Grid:
    """A sparse grid of (red, green, blue, density logit); see `posegen_ray.subjects.field`."""

    index: wp.array3d(dtype=wp.int32)
    values: wp.array(dtype=wp.vec4)
    low: wp.vec3
    cells_per_metre: float
    density_scale: float  # per metre: density = scale * sigmoid(logit)


@wp.struct
class Cell:
    """The eight corners of a cell (named by their x, y, z offsets) and the place inside it."""

    r00: int  # row of corner (0, 0, 0); the row of (0, 0, 1) follows it; < 0: nothing here
    r01: int
    r10: int
    r11: int
    x: float
    y: float
    z: float


@wp.func
def row_of(code: int):
    if code < 0:
        return -2 - code
    return code


@wp.func
def find_cell(grid: Grid, place: wp.vec3):
    """`place` in cells from the grid's corner."""
    cell = Cell()
    cell.r00 = -1
    if place[0] >= 0.0 and place[1] >= 0.0 and place[2] >= 0.0:
        x = int(place[0])
        y = int(place[1])
        z = int(place[2])
        if (
            x < grid.index.shape[0] - 1
            and y < grid.index.shape[1] - 1
            and z < grid.index.shape[2] - 1
        ):
            code = grid.index[x, y, z]
            if code >= 0:
                cell.r00 = code
                cell.r01 = row_of(grid.index[x, y + 1, z])
                cell.r10 = row_of(grid.index[x + 1, y, z])
                cell.r11 = row_of(grid.index[x + 1, y + 1, z])
                cell.x = place[0] - float(x)
                cell.y = place[1] - float(y)
                cell.z = place[2] - float(z)
    return cell


@wp.func
def interpolate(grid: Grid, cell: Cell):
    v00 = (1.0 - cell.z) * grid.values[cell.r00] + cell.z * grid.values[cell.r00 + 1]
    v01 = (1.0 - cell.z) * grid.values[cell.r01] + cell.z * grid.values[cell.r01 + 1]
    v10 = (1.0 - cell.z) * grid.values[cell.r10] + cell.z * grid.values[cell.r10 + 1]
    v11 = (1.0 - cell.z) * grid.values[cell.r11] + cell.z * grid.values[cell.r11 + 1]
    v0 = (1.0 - cell.y) * v00 + cell.y * v01
    v1 = (1.0 - cell.y) * v10 + cell.y * v11
    return (1.0 - cell.x) * v0 + cell.x * v1


@wp.func
def pull_back_place(grid: Grid, cell: Cell, grad: wp.vec4):
    """Gradient of `interpolate` with respect to the place, in cells."""
    a0 = grid.values[cell.r00]
    a1 = grid.values[cell.r00 + 1]
    b0 = grid.values[cell.r01]
    b1 = grid.values[cell.r01 + 1]
    c0 = grid.values[cell.r10]
    c1 = grid.values[cell.r10 + 1]
    d0 = grid.values[cell.r11]
    d1 = grid.values[cell.r11 + 1]
    ux = 1.0 - cell.x
    uy = 1.0 - cell.y
    uz = 1.0 - cell.z
    v00 = uz * a0 + cell.z * a1
    v01 = uz * b0 + cell.z * b1
    v10 = uz * c0 + cell.z * c1
    v11 = uz * d0 + cell.z * d1
    along_x = uy * (v10 - v00) + cell.y * (v11 - v01)
    along_y = ux * (v01 - v00) + cell.x * (v11 - v10)
    along_z = ux * (uy * (a1 - a0) + cell.y * (b1 - b0)) + cell.x * (
        uy * (c1 - c0) + cell.y * (d1 - d0)
    )
    return wp.vec3(wp.dot(grad, along_x), wp.dot(grad, along_y), wp.dot(grad, along_z))


@wp.func
def pull_back_values(grad_values: wp.array(dtype=wp.vec4), cell: Cell, grad: wp.vec4):
    """Adds the gradient of `interpolate` with respect to the eight corner values."""
    low = (1.0 - cell.z) * grad
    high = cell.z * grad
    w00 = (1.0 - cell.x) * (1.0 - cell.y)
    w01 = (1.0 - cell.x) * cell.y
    w10 = cell.x * (1.0 - cell.y)
    w11 = cell.x * cell.y
    wp.atomic_add(grad_values, cell.r00, w00 * low)
    wp.atomic_add(grad_values, cell.r00 + 1, w00 * high)
    wp.atomic_add(grad_values, cell.r01, w01 * low)
    wp.atomic_add(grad_values, cell.r01 + 1, w01 * high)
    wp.atomic_add(grad_values, cell.r10, w10 * low)
    wp.atomic_add(grad_values, cell.r10 + 1, w10 * high)
    wp.atomic_add(grad_values, cell.r11, w11 * low)
    wp.atomic_add(grad_values, cell.r11 + 1, w11 * high)


# --- marching -----------------------------------------------------------------------------------


@wp.struct
class Shell:
    """The posed cage of every image of a batch, and the marching constants."""

    points: wp.array2d(dtype=wp.vec3)  # [B, C] world
    inverse: wp.array2d(dtype=wp.mat33)  # [B, C]
    rest: wp.array(dtype=wp.vec3)  # [C]
    faces: wp.array2d(dtype=wp.int32)  # [T, 3]
    step: float
    thickness: float
    layers: int
    early_stop: float


@wp.struct
class Chart:
    start: wp.vec3  # place in the grid (cells) at t = 0
    velocity: wp.vec3  # its change with t
    inverse: wp.mat33
    offset: wp.vec3  # ray origin - point(b)
    a: int
    b: int
    c: int
    share_a: float
    share_b: float
    share_c: float
    depth: float  # of the entry
    first: int  # samples k = first .. last
    last: int


@wp.func
def enter(
    shell: Shell,
    grid: Grid,
    image: int,
    entry: wp.uint64,
    exit_: wp.uint64,
    origin: wp.vec3,
    direction: wp.vec3,
):
    chart = Chart()
    depth = wp.cast(wp.uint32(entry >> wp.uint64(32)), wp.float32)
    face = int(wp.uint32(entry & LOW_HALF))
    end = depth + shell.thickness
    if exit_ != EMPTY:
        end = wp.min(end, wp.cast(wp.uint32(exit_ >> wp.uint64(32)), wp.float32))
    chart.a = shell.faces[face, 0]
    chart.b = shell.faces[face, 1]
    chart.c = shell.faces[face, 2]
    pa = shell.points[image, chart.a]
    pb = shell.points[image, chart.b]
    pc = shell.points[image, chart.c]
    hit = origin + depth * direction
    normal = wp.cross(pb - pa, pc - pa)
    area = wp.dot(normal, normal)
    chart.share_b = wp.dot(wp.cross(hit - pa, pc - pa), normal) / area
    chart.share_c = wp.dot(wp.cross(pb - pa, hit - pa), normal) / area
    chart.share_a = 1.0 - chart.share_b - chart.share_c
    chart.inverse = (
        chart.share_a * shell.inverse[image, chart.a]
        + chart.share_b * shell.inverse[image, chart.b]
        + chart.share_c * shell.inverse[image, chart.c]
    )
    rest = (
        chart.share_a * shell.rest[chart.a]
        + chart.share_b * shell.rest[chart.b]
        + chart.share_c * shell.rest[chart.c]
    )
    chart.offset = origin - (chart.share_a * pa + chart.share_b * pb + chart.share_c * pc)
    chart.start = (rest + chart.inverse * chart.offset - grid.low) * grid.cells_per_metre
    chart.velocity = (chart.inverse * direction) * grid.cells_per_metre
    chart.depth = depth
    chart.first = int(wp.ceil(depth / shell.step - 0.5))
    chart.last = int(wp.floor(end / shell.step - 0.5))
    return chart


@wp.kernel
def march(
    image_of: wp.array(dtype=wp.int32),  # [N] image of each ray
    origins: wp.array(dtype=wp.vec3),  # [B]
    directions: wp.array(dtype=wp.vec3),  # [N] z = 1 in camera space
    front: wp.array2d(dtype=wp.uint64),  # [N, LAYERS]
    back: wp.array2d(dtype=wp.uint64),
    shell: Shell,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    length = wp.length(direction) * shell.step
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    for layer in range(shell.layers):
        entry = front[ray, layer]
        if entry == EMPTY or light < shell.early_stop:
            break
        chart = enter(shell, grid, image, entry, back[ray, layer], origin, direction)
        for k in range(chart.first, chart.last + 1):
            t = (float(k) + 0.5) * shell.step
            cell = find_cell(grid, chart.start + t * chart.velocity)
            if cell.r00 >= 0:
                value = interpolate(grid, cell)
                density = grid.density_scale / (1.0 + wp.exp(-value[3]))
                passed = wp.exp(-density * length)
                colour += (light * (1.0 - passed)) * wp.vec3(value[0], value[1], value[2])
                light = light * passed
                if light < shell.early_stop:
                    break
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    front: wp.array2d(dtype=wp.uint64),
    back: wp.array2d(dtype=wp.uint64),
    shell: Shell,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] what `march` gave
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_points, grad_inverse and set grad_origins, grad_directions
    to_field: int,  # 1: add to grad_values
    grad_points: wp.array2d(dtype=wp.vec3),  # [B, C]
    grad_inverse: wp.array2d(dtype=wp.mat33),  # [B, C]
    grad_origins: wp.array(dtype=wp.vec3),  # [N], per ray
    grad_directions: wp.array(dtype=wp.vec3),  # [N]
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    norm = wp.length(direction)
    length = norm * shell.step
    out = rgba[ray]
    grad = grad_rgba[ray]
    grad_colour = wp.vec3(grad[0], grad[1], grad[2])
    # what the light behind the current sample is worth: later samples' colour, less the final alpha
    behind = wp.dot(grad_colour, wp.vec3(out[0], out[1], out[2])) - grad[3] * (1.0 - out[3])
    light = float(1.0)
    grad_length = float(0.0)
    grad_origin = wp.vec3(0.0, 0.0, 0.0)
    grad_direction = wp.vec3(0.0, 0.0, 0.0)
    for layer in range(shell.layers):
        entry = front[ray, layer]
        if entry == EMPTY or light < shell.early_stop:
            break
        chart = enter(shell, grid, image, entry, back[ray, layer], origin, direction)
        # sums over samples of d(loss)/d(place) and of t times it
        pull = wp.vec3(0.0, 0.0, 0.0)
        pull_t = wp.vec3(0.0, 0.0, 0.0)
        for k in range(chart.first, chart.last + 1):
            t = (float(k) + 0.5) * shell.step
            cell = find_cell(grid, chart.start + t * chart.velocity)
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
                grad_length += grad_depth * density
                grad_value = wp.vec4(
                    weight * grad[0],
                    weight * grad[1],
                    weight * grad[2],
                    grad_depth * length * density * (1.0 - sigmoid),
                )
                if to_field == 1:
                    pull_back_values(grad_values, cell, grad_value)
                if to_pose == 1:
                    place = pull_back_place(grid, cell, grad_value)
                    pull += place
                    pull_t += t * place
                if light < shell.early_stop:
                    break
        if to_pose == 1:
            pull = pull * grid.cells_per_metre
            pull_t = pull_t * grid.cells_per_metre
            la = shell.inverse[image, chart.a]
            lb = shell.inverse[image, chart.b]
            lc = shell.inverse[image, chart.c]
            pa = shell.points[image, chart.a]
            pb = shell.points[image, chart.b]
            pc = shell.points[image, chart.c]
            grad_inv = wp.outer(pull, chart.offset) + wp.outer(pull_t, direction)
            wp.atomic_add(grad_inverse, image, chart.a, chart.share_a * grad_inv)
            wp.atomic_add(grad_inverse, image, chart.b, chart.share_b * grad_inv)
            wp.atomic_add(grad_inverse, image, chart.c, chart.share_c * grad_inv)
            back_pull = wp.transpose(chart.inverse) * pull
            grad_origin += back_pull
            grad_direction += wp.transpose(chart.inverse) * pull_t
            # the entry itself moves over the triangle: d(loss) / d(barycentrics)
            slide = wp.vec3(0.0, 0.0, 0.0)
            normal = wp.cross(pb - pa, pc - pa)
            facing = wp.dot(normal, direction)
            if wp.abs(facing) > GRAZING * wp.length(normal) * norm:
                turned = chart.offset
                grad_a = wp.dot(
                    pull, shell.rest[chart.a] + la * turned - chart.inverse * pa
                ) + wp.dot(pull_t, la * direction)
                grad_b = wp.dot(
                    pull, shell.rest[chart.b] + lb * turned - chart.inverse * pb
                ) + wp.dot(pull_t, lb * direction)
                grad_c = wp.dot(
                    pull, shell.rest[chart.c] + lc * turned - chart.inverse * pc
                ) + wp.dot(pull_t, lc * direction)
                slide = (
                    (grad_b - grad_a) * wp.cross(pc - pa, direction)
                    + (grad_c - grad_a) * wp.cross(direction, pb - pa)
                ) / facing
                grad_origin += slide
                grad_direction += chart.depth * slide
            moved = back_pull + slide
            wp.atomic_add(grad_points, image, chart.a, -chart.share_a * moved)
            wp.atomic_add(grad_points, image, chart.b, -chart.share_b * moved)
            wp.atomic_add(grad_points, image, chart.c, -chart.share_c * moved)
    if to_pose == 1:
        grad_origins[ray] = grad_origin
        grad_directions[ray] = grad_direction + (grad_length * shell.step / norm) * direction


# --- building and fitting the field -------------------------------------------------------------


@wp.kernel
def signed_distance(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    farthest: float,
    distance: wp.array(dtype=float),  # negative inside; `farthest` where nothing is nearer
):
    i = wp.tid()
    query = wp.mesh_query_point_sign_normal(mesh, places[i], farthest)
    distance[i] = farthest
    if query.result:
        nearest = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
        distance[i] = query.sign * wp.length(nearest - places[i])


@wp.kernel
def smooth(
    neighbours: wp.array2d(dtype=wp.int32),  # [M, 3] next row along x, y, z; < 0: none
    values: wp.array(dtype=wp.vec4),
    strength: wp.vec4,
    grad_values: wp.array(dtype=wp.vec4),
):
    """Adds the gradient of strength / 2 * (difference between neighbours)^2."""
    i = wp.tid()
    for axis in range(3):
        j = neighbours[i, axis]
        if j >= 0:
            pull = wp.cw_mul(strength, values[i] - values[j])
            wp.atomic_add(grad_values, i, pull)
            wp.atomic_add(grad_values, j, -pull)


@wp.kernel
def adam(
    values: wp.array(dtype=wp.vec4),
    grad_values: wp.array(dtype=wp.vec4),  # set to zero
    mean: wp.array(dtype=wp.vec4),
    square: wp.array(dtype=wp.vec4),
    rate: wp.vec4,
    mean_unbias: float,
    square_unbias: float,
    lowest: wp.vec4,
    highest: wp.vec4,
):
    """One Adam step (betas 0.9 and 0.99), then clamps the values to their range."""
    i = wp.tid()
    grad = grad_values[i]
    m = 0.9 * mean[i] + 0.1 * grad
    s = 0.99 * square[i] + 0.01 * wp.cw_mul(grad, grad)
    mean[i] = m
    square[i] = s
    value = values[i]
    for k in range(4):
        moved = value[k] - rate[k] * (m[k] * mean_unbias) / (wp.sqrt(s[k] * square_unbias) + 1.0e-8)
        value[k] = wp.clamp(moved, lowest[k], highest[k])
    values[i] = value
    grad_values[i] = wp.vec4(0.0, 0.0, 0.0, 0.0)
