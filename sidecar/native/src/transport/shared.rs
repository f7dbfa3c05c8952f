//! What passes between the asyncio thread and the transport's thread, and how each wakes the other.
//!
//! Two queues. Python puts commands into one and wakes the transport once for a batch of them (`flush`). The transport
//! puts events into the other and writes to an eventfd, once for all that came in one turn of its own loop: the task
//! that writes is put behind all that are ready to run. Each side takes everything at once. The transport's thread
//! never holds Python's lock, and runs no Python.
//!
//! Limits: both queues hold at most what is under way, which servers and callers bound. A request that its client gave up
//! is under way no more, but in the queue until Python takes it; so it is counted there by its bytes, `REQUEST_BYTES` at
//! least (`Held`).

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, Notify};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dial::Lives;
use super::http1::{HttpAnswer, HttpAnswered, HttpCall, HttpRequest};

pub type Metadata = Vec<(String, String)>;

/// How a call ended, either way.
pub struct Answer {
    pub code: u8,
    pub message: String,
    pub body: Bytes,
    pub details: Option<Vec<u8>>,
    /// Whether the next hop itself said so; false where nothing came back from it.
    pub heard: bool,
}

impl Answer {
    /// A failure that the next hop itself didn't tell.
    pub fn failed(code: u8, message: impl Into<String>) -> Self {
        Answer { code, message: message.into(), body: Bytes::new(), details: None, heard: false }
    }

    /// The same, where what it sent says so.
    pub fn refused(code: u8, message: impl Into<String>) -> Self {
        Answer { heard: true, ..Answer::failed(code, message) }
    }
}

/// From the transport to Python.
pub enum Event {
    Request {
        server: u64,
        id: u64,
        path: u8,
        body: Vec<u8>,
        deadline: Option<Instant>,
        metadata: Metadata,
        held: Held,
    },
    /// Nobody waits for the answer to a request any more.
    Gone {
        id: u64,
    },
    Answered {
        call: u64,
        answer: Answer,
    },
    Closed {
        server: u64,
    },
    Trouble {
        text: String,
    },
    /// A server listens no more, though nobody closed it.
    Deaf {
        server: u64,
    },
    HttpRequest {
        server: u64,
        id: u64,
        request: Box<HttpRequest>,
        held: Held,
    },
    HttpAnswered {
        call: u64,
        answered: Box<HttpAnswered>,
    },
    /// So many connections were beyond a server's limit.
    TurnedAway {
        server: u64,
        count: u64,
    },
}

/// From Python to the transport: values, of which its own thread makes servers and channels.
pub enum Command {
    Listen {
        server: u64,
        protocol: Protocol,
        listener: Listening,
        paths: Vec<String>,
        metadata: Vec<HeaderName>,
        limits: Limits,
    },
    Close { server: u64, grace: Duration },
    Reply { id: u64, answer: Answer },
    HttpReply { id: u64, answer: HttpAnswer },
    Connect { id: u64, target: Target, gzip: bool, answer_bytes: usize, lives: Lives },
    /// `start`: the first line of every request, and the fields that never change.
    ConnectHttp { id: u64, target: Target, start: String, gzip: bool, answer_bytes: usize, lives: Lives },
    Disconnect { id: u64 },
    Call { channel: u64, id: u64, call: Call },
    HttpCall { channel: u64, id: u64, call: HttpCall },
    Cancel { id: u64 },
    Stop,
}

/// What is spoken on a server's connections.
#[derive(Clone, Copy)]
pub enum Protocol {
    Grpc,
    /// `idle`: between two requests, until the head of the second is there.
    Http {
        idle: Duration,
    },
}

/// What a server bears.
pub struct Limits {
    pub body_bytes: usize,
    pub held_bytes: usize,
    pub requests: usize,
    pub connections: usize,
    pub streams: u32,
    /// For one request to arrive.
    pub read: Duration,
}

/// Where an endpoint is.
pub enum Target {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// One call, as Python gave it.
pub struct Call {
    pub uri: Uri,
    pub body: Bytes,
    pub timeout: Option<Duration>,
    pub metadata: HeaderMap,
}

/// A listening socket, which becomes the runtime's on its thread.
pub enum Listening {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// What is there at this moment, and what happened since the start.
#[derive(Default)]
pub struct Stats {
    pub connections: AtomicUsize,
    pub requests: AtomicUsize,
    pub held_bytes: AtomicUsize,
    pub calls: AtomicUsize,
    pub next_hops: AtomicUsize,
    pub refused: AtomicUsize,
    pub panics: AtomicUsize,
}

pub struct Shared {
    pub stats: Arc<Stats>,
    /// Where requests wait for Python's answer.
    pub waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    pub http_waiting: Mutex<HashMap<u64, oneshot::Sender<HttpAnswer>>>,
    /// Calls under way, for their cancellation.
    pub calls: Mutex<HashMap<u64, AbortHandle>>,
    /// Which part fails next, for tests: see `Transport.panic_once`.
    pub panic: AtomicU64,
    pub dead: AtomicBool,
    commands: Mutex<Vec<Command>>,
    command: Notify,
    events: Mutex<Vec<Event>>,
    event: Notify,
    eventfd: OwnedFd,
    last_id: AtomicU64,
}

/// Nothing that holds these locks can leave what they guard half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: a new descriptor, or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Shared {
            stats: Arc::default(),
            waiting: Mutex::default(),
            http_waiting: Mutex::default(),
            calls: Mutex::default(),
            panic: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            commands: Mutex::default(),
            command: Notify::new(),
            events: Mutex::default(),
            event: Notify::new(),
            // SAFETY: nobody else owns it.
            eventfd: unsafe { OwnedFd::from_raw_fd(fd) },
            last_id: AtomicU64::new(0),
        })
    }

    pub fn fd(&self) -> i32 {
        self.eventfd.as_raw_fd()
    }

    pub fn new_id(&self) -> u64 {
        self.last_id.fetch_add(1, Relaxed) + 1
    }

    /// One for the next batch; nobody takes it once the thread has ended.
    pub fn command(&self, command: Command) {
        if !self.dead.load(Relaxed) {
            lock(&self.commands).push(command);
        }
    }

    /// The thread has ended: what is in the queue will not be obeyed.
    pub fn die(&self) {
        self.dead.store(true, Relaxed);
        drop(std::mem::take(&mut *lock(&self.commands)));
    }

    /// Wakes the transport for the commands given since the last time.
    pub fn flush(&self) {
        self.command.notify_one();
    }

    pub async fn commands(&self) -> Vec<Command> {
        self.command.notified().await;
        std::mem::take(&mut lock(&self.commands))
    }

    pub fn tell(&self, event: Event) {
        lock(&self.events).push(event);
        self.event.notify_one();
    }

    /// One more connection beyond a server's limit: counted in one event, however many come before Python takes it.
    pub fn turned_away(&self, id: u64) {
        for event in lock(&self.events).iter_mut().rev() {
            if let Event::TurnedAway { server, count } = event {
                if *server == id {
                    *count += 1;
                    return;
                }
            }
        }
        self.tell(Event::TurnedAway { server: id, count: 1 });
    }

    /// All events so far. What is told after this makes the descriptor readable again.
    pub fn take(&self) -> Vec<Event> {
        let mut count = 0u64;
        // SAFETY: eight bytes, as an eventfd wants; it does not block. Nothing to read is no error here.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
        std::mem::take(&mut lock(&self.events))
    }

    /// Wakes Python. A task for as long as the transport runs.
    pub async fn signal(self: Arc<Self>) {
        loop {
            self.event.notified().await;
            self.signal_now();
        }
    }

    pub fn signal_now(&self) {
        if !lock(&self.events).is_empty() {
            let one = 1u64;
            // SAFETY: eight bytes. It fails only where the counter is full, and then the other side is awake.
            unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
        }
    }

    pub fn maybe_panic(&self, here: u64) {
        if self.panic.compare_exchange(here, 0, Relaxed, Relaxed).is_ok() {
            panic!("asked for by a test");
        }
    }
}

/// Spawns a task. One that panics is counted and told of, and takes along only what it owns.
pub fn spawn<F>(shared: &Arc<Shared>, what: &'static str, task: F) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    struct Watch(Arc<Shared>, &'static str);
    impl Drop for Watch {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.stats.panics.fetch_add(1, Relaxed);
                self.0.tell(Event::Trouble { text: format!("a fault in the native transport ended {}", self.1) });
            }
        }
    }
    let watch = Watch(shared.clone(), what);
    tokio::spawn(async move {
        let _watch = watch;
        task.await;
    })
    .abort_handle()
}

/// Counts as long as it lives.
pub struct Counted(Arc<Stats>, fn(&Stats) -> &AtomicUsize);

impl Counted {
    pub fn new(stats: &Arc<Stats>, which: fn(&Stats) -> &AtomicUsize) -> Self {
        which(stats).fetch_add(1, Relaxed);
        Counted(stats.clone(), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Relaxed);
    }
}

/// What a request takes in the queue beside its body and metadata, with the event that its client has gone.
pub const REQUEST_BYTES: usize = 512;

/// Bytes of requests that Python hasn't taken yet.
pub struct Held {
    stats: Arc<Stats>,
    size: usize,
}

impl Held {
    pub fn new(stats: &Arc<Stats>) -> Self {
        Held { stats: stats.clone(), size: 0 }
    }

    /// False if all together are more than `max` bytes now, and this one isn't alone.
    #[must_use]
    pub fn add(&mut self, size: usize, max: usize) -> bool {
        self.size += size;
        let all = self.stats.held_bytes.fetch_add(size, Relaxed) + size;
        all <= max || all == self.size
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stats.held_bytes.fetch_sub(self.size, Relaxed);
    }
}

/// When something was last read from a connection, and whether anything ever was.
pub struct Heard {
    last_ns: AtomicU64, // since BEGAN; 0 for never
}

static BEGAN: OnceLock<Instant> = OnceLock::new();

impl Heard {
    pub fn new() -> Arc<Self> {
        BEGAN.get_or_init(Instant::now);
        Arc::new(Heard { last_ns: AtomicU64::new(0) })
    }

    fn note(&self) {
        let ns = BEGAN.get().map_or(0, |began| began.elapsed().as_nanos() as u64);
        self.last_ns.store(ns.max(1), Relaxed);
    }

    pub fn ever(&self) -> bool {
        self.last_ns.load(Relaxed) != 0
    }

    /// A number that changes whenever something is read.
    pub fn mark(&self) -> u64 {
        self.last_ns.load(Relaxed)
    }
}

/// A connection's socket, watched for bytes that come.
pub struct Socket {
    kind: Kind,
    heard: Arc<Heard>,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub fn tcp(stream: TcpStream, heard: Arc<Heard>) -> Self {
        let _ = stream.set_nodelay(true); // without it an answer is late, not wrong
        Socket { kind: Kind::Tcp(stream), heard }
    }

    pub fn unix(stream: UnixStream, heard: Arc<Heard>) -> Self {
        Socket { kind: Kind::Unix(stream), heard }
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $what:expr) => {
        match &mut $self.get_mut().kind {
            Kind::Tcp($stream) => $what,
            Kind::Unix($stream) => $what,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let me = self.get_mut();
        let polled = match &mut me.kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            me.heard.note();
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
