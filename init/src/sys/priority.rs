//! How urgent a thread's work is.

/// Runs only with what others leave.
pub(crate) const LOWEST: libc::c_int = 19;

/// setpriority(2) of the calling thread: 0, as everybody, to [`LOWEST`]. It can always be lowered, and root can raise it again.
pub(crate) fn of_this_thread(nice: libc::c_int) {
    // SAFETY: the call takes numbers only; 0 names the calling thread (Linux keeps this value per thread) and no memory is touched.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if done != 0 {
        log::debug!("a thread keeps its priority: {}", std::io::Error::last_os_error());
    }
}
