//! What kernels are tested and timed on: ops at the shapes that models give them.
//!
//! A [`Case`] is an op and its sizes, pure data; [`table`] lists those of the models we are for; [`Case::work`] says
//! what one costs at least; a [`Call`] is a case with random arguments, on the host or on a backend. `selftest` and
//! `bench kernels` are two uses of the same table, and peers read it by `bench kernels --list --json`.

mod arguments;
mod backward;
mod call;
mod case;
mod floor;
mod make;
mod pages;
mod random;
mod selection;
mod table;

pub(super) use arguments::Argument;
pub(super) use call::Call;
pub(super) use case::{Case, Then};
pub(super) use floor::Work;
pub(super) use random::tensor as random;
pub(super) use selection::Selection;
pub(super) use table::table;
