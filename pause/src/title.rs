//! The status in pause's own argument strings, which everybody can read as `/proc/<pid>/cmdline`.

use pause_status::{Separator, Status};

pub(crate) struct Title {
    /// Empty where there is no room for a status. The last byte is the NUL that ends the kernel's view of it.
    room: &'static mut [u8],
}

impl Title {
    pub(crate) fn new(room: &'static mut [u8]) -> Self {
        Self { room }
    }

    pub(crate) fn none() -> Self {
        Self { room: &mut [] }
    }

    /// Writes the status over what stands there. A reader may see both at once; the status's sum tells it so.
    pub(crate) fn show(&mut self, status: &Status<'_>) {
        let Some((_last, room)) = self.room.split_last_mut() else {
            return;
        };
        let len = status.encode(Separator::Nul, room);
        if let Some(rest) = room.get_mut(len..) {
            rest.fill(0);
        }
        // The memory is read from outside this program, so the writes must not be put off.
        core::hint::black_box(room);
    }
}
