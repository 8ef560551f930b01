"""Warp kernels and functions on the sparse grid: lookup, its adjoint, and fitting steps.

One source for CPU and CUDA. Knows nothing of rays and lattices.
"""

# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return,attr-defined,type-var"
import warp as wp

wp.set_module_options({"enable_backward": False})


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


# --- building and fitting the field -------------------------------------------------------------


@wp.kernel
def signed_distance(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    farthest: float,
    distance: wp.array(dtype=float),  # negative inside; `farthest` where nothing is nearer
):
    i = wp.tid()
    query = wp.mesh_query_point_sign_winding_number(mesh, places[i], farthest)
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
