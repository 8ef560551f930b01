"""Warp kernels and functions on the field: lookup, its adjoint, and fitting steps.

One source for CPU and CUDA. Knows nothing of rays and lattices.
"""

# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return,attr-defined,type-var,arg-type"
import warp as wp

wp.set_module_options({"enable_backward": False})


# --- field lookup -------------------------------------------------------------------------------


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


@wp.struct
class Cell:
    """A cell of a block and the place inside it."""

    corner: int  # its low corner in `Blocks.values`
    x: float
    y: float
    z: float


@wp.func
def find_cell(block: int, place: wp.vec3):
    """`place` in cells from the block's corner, 0 to 3 but for rounding."""
    x = wp.clamp(int(place[0]), 0, 2)
    y = wp.clamp(int(place[1]), 0, 2)
    z = wp.clamp(int(place[2]), 0, 2)
    cell = Cell()
    cell.corner = block * 64 + x * 16 + y * 4 + z
    cell.x = place[0] - float(x)
    cell.y = place[1] - float(y)
    cell.z = place[2] - float(z)
    return cell


@wp.func
def add_to_row(grad_values: wp.array(dtype=wp.vec4), row: int, grad: wp.vec4):
    if row >= 0:
        wp.atomic_add(grad_values, row, grad)


@wp.func
def pull_back_values(
    blocks: Blocks, grad_values: wp.array(dtype=wp.vec4), cell: Cell, grad: wp.vec4
):
    """Adds the gradient of trilinear interpolation to the field's rows."""
    i = cell.corner
    low = (1.0 - cell.z) * grad
    high = cell.z * grad
    w00 = (1.0 - cell.x) * (1.0 - cell.y)
    w01 = (1.0 - cell.x) * cell.y
    w10 = cell.x * (1.0 - cell.y)
    w11 = cell.x * cell.y
    add_to_row(grad_values, blocks.rows[i], w00 * low)
    add_to_row(grad_values, blocks.rows[i + 1], w00 * high)
    add_to_row(grad_values, blocks.rows[i + 4], w01 * low)
    add_to_row(grad_values, blocks.rows[i + 5], w01 * high)
    add_to_row(grad_values, blocks.rows[i + 16], w10 * low)
    add_to_row(grad_values, blocks.rows[i + 17], w10 * high)
    add_to_row(grad_values, blocks.rows[i + 20], w11 * low)
    add_to_row(grad_values, blocks.rows[i + 21], w11 * high)


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
