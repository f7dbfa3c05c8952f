//! `skewd_native`: the sidecar's hot path, for Python.
//!
//! The sidecar is Python, and stays whole without this. What is here are twins of Python modules that cost too much
//! there, with the same rules and the same bytes out; the Python module is the specification, and tests compare the two.

mod attributes;
mod census;
mod patch;
mod table;
mod transport;
mod wire;

use pyo3::prelude::*;

#[pymodule]
fn skewd_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("PATCH_INTERFACE", patch::INTERFACE)?;
    module.add_class::<patch::Patcher>()?;
    module.add_function(wrap_pyfunction!(census::census, module)?)?;
    module.add_class::<table::Table>()?;
    module.add("MalformedBody", module.py().get_type::<patch::MalformedBody>())?;
    module.add("TRANSPORT_INTERFACE", transport::INTERFACE)?;
    module.add_class::<transport::Transport>()?;
    Ok(())
}
