//! How the tensor memory accelerator sees a tensor, with the rules that drivers have for it.

use super::Address;
use crate::error::{Error, Result};

/// An encoded tensor map, opaque but to the device that made it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct TensorMap(pub(super) [u8; 128]);

/// How the tensor memory accelerator should see a tensor; dimensions from the innermost on.
#[derive(Debug, Clone, Copy)]
pub struct TensorShape<'a> {
    /// Where it begins; a multiple of 16.
    pub address: Address,
    /// Bytes of an element.
    pub element: u32,
    /// Elements along each dimension.
    pub sizes: &'a [u64],
    /// Bytes from one index to the next, from dimension 1 on; multiples of 16.
    pub strides: &'a [u64],
    /// Elements of the box that one copy moves.
    pub tile: &'a [u32],
    /// Bytes the swizzle spans: 0, 32, 64 or 128.
    pub swizzle: u32,
}

impl TensorShape<'_> {
    /// Refuses what a driver would, by name.
    pub(super) fn check(&self) -> Result<()> {
        let &TensorShape { address, element, sizes, strides, tile, swizzle } = self;
        let (rank, inner) = (sizes.len(), u64::from(tile.first().copied().unwrap_or(0)) * u64::from(element));
        for (holds, what) in [
            ((1..=5).contains(&rank), "rank is not 1 to 5"),
            (strides.len() + 1 == rank, "strides are not one fewer than sizes"),
            (tile.len() == rank, "box dimensions are not as many as sizes"),
            (matches!(element, 1 | 2 | 4 | 8), "element size is not 1, 2, 4 or 8 bytes"),
            (address.0 % 16 == 0, "global address is not a multiple of 16"),
            (matches!(swizzle, 0 | 32 | 64 | 128), "swizzle is not 0, 32, 64 or 128 bytes"),
            (sizes.iter().all(|&size| (1..=1 << 32).contains(&size)), "a dimension is not 1 to 2^32"),
            (tile.iter().all(|side| (1..=256).contains(side)), "a box dimension is not 1 to 256"),
            (
                strides.iter().all(|&stride| stride % 16 == 0 && stride < 1 << 40),
                "a stride is not a multiple of 16 below 2^40",
            ),
            (inner % 16 == 0, "the box's inner bytes are not a multiple of 16"),
            (swizzle == 0 || inner <= u64::from(swizzle), "the box's inner bytes exceed the swizzle's span"),
        ] {
            if !holds {
                return Err(Error::internal("tensor_map", format!("{what}: {self:?}")));
            }
        }
        Ok(())
    }
}
