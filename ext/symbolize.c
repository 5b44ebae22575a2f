/* The helper program that turns the record of a death (record.h), read from stdin, into a stack
 * with names. It is a program of its own, so that broken debug information ends only this, and
 * works on a time limit that its parent sets: what is known is written at once, the most wanted
 * first. All the unwinding and reading of debug information is done by elfutils' libdw.
 *
 * One line for each frame, innermost first, fields separated by tabs, numbers in hexadecimal:
 *     frame  number  pc  offset-in-library  library  function  offset-in-function
 * then, where there is debug information, one line for each function that was inlined there, and
 * one for the function itself:
 *     line  number  function  file  line (decimal)
 * and `more` where the stack goes on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dwarf.h>
#include <elfutils/libdwfl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "record.h"

#define FRAMES 100

struct frame {
    Dwarf_Addr pc;
    bool call; /* pc is a return address: the call is before it */
};

struct dump {
    struct record_header *header;
    const unsigned char *stack;
    char *maps; /* ends with NUL */
    struct frame frames[FRAMES];
    int nframes;
    bool more;
};

/* ---- input --------------------------------------------------------------------------------- */

/* All of stdin; the caller's. NULL when there is no memory. */
static unsigned char *
read_all(size_t *size)
{
    size_t capacity = 1 << 20;
    unsigned char *data = malloc(capacity);
    ssize_t n;

    for (*size = 0; data && (n = read(0, data + *size, capacity - *size)) > 0;) {
        *size += (size_t)n;
        if (*size == capacity) {
            unsigned char *more = realloc(data, capacity *= 2);
            if (!more)
                free(data);
            data = more;
        }
    }
    return data;
}

static bool
take(struct dump *self, unsigned char *data, size_t size)
{
    self->header = (struct record_header *)data;
    if (size < sizeof *self->header || self->header->magic != RECORD_MAGIC)
        return false;
    size -= sizeof *self->header;
    if (self->header->stack_size > size ||
        self->header->maps_size > size - self->header->stack_size)
        return false;
    self->stack = data + sizeof *self->header;
    self->maps =
        strndup((const char *)self->stack + self->header->stack_size, self->header->maps_size);
    return self->maps != NULL;
}

/* One line of /proc/PID/maps. */
struct mapping {
    uint64_t start, end, offset;
    char rights[8];
    unsigned long major, minor, inode;
    const char *path; /* in the line, up to its end */
    int path_length;
};

static bool
parse_mapping(const char *line, struct mapping *self)
{
    int name = 0;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %lx:%lx %lu%n", &self->start,
               &self->end, self->rights, &self->offset, &self->major, &self->minor, &self->inode,
               &name) != 7)
        return false;
    self->path = line + name + strspn(line + name, " ");
    self->path_length = (int)strcspn(self->path, "\n");
    return true;
}

/* Where an address is. */
static bool
find_mapping(const char *maps, uint64_t address, struct mapping *found)
{
    for (const char *line = maps; *line; line = strchrnul(line, '\n'), line += *line == '\n')
        if (parse_mapping(line, found) && address >= found->start && address < found->end)
            return true;
    return false;
}

/* The maps without those whose file is not what it was when it was mapped: its names would be
 * wrong. The caller's. */
static char *
unchanged(const char *maps)
{
    /* Each line gets an end, the last one too if it had none. */
    char *kept = malloc(strlen(maps) + 2), *to = kept;

    for (const char *line = maps; kept && *line;) {
        const char *end = strchrnul(line, '\n');
        struct mapping mapping;
        struct stat facts;
        char path[4096];
        bool good = true;
        if (parse_mapping(line, &mapping) && mapping.path_length > 0 && *mapping.path == '/') {
            snprintf(path, sizeof path, "%.*s", mapping.path_length, mapping.path);
            good =
                stat(path, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_ino == mapping.inode;
        }
        if (good) {
            to = mempcpy(to, line, (size_t)(end - line));
            *to++ = '\n';
        }
        line = *end ? end + 1 : end;
    }
    if (kept)
        *to = 0;
    return kept;
}

/* ---- unwinding ----------------------------------------------------------------------------- */

static pid_t
next_thread(Dwfl *dwfl, void *argument, void **thread)
{
    const struct dump *self = argument;

    (void)dwfl;
    if (*thread)
        return 0;
    *thread = argument;
    return self->header->tid;
}

static bool
read_memory(Dwfl *dwfl, Dwarf_Addr address, Dwarf_Word *result, void *argument)
{
    const struct dump *self = argument;
    uint64_t start = self->header->stack_start, size = self->header->stack_size;

    (void)dwfl;
    if (size < sizeof *result || address < start || address - start > size - sizeof *result)
        return false;
    memcpy(result, self->stack + (address - start), sizeof *result);
    return true;
}

static bool
set_registers(Dwfl_Thread *thread, void *argument)
{
    const struct dump *self = argument;
    const struct record_header *header = self->header;
    Dwarf_Word registers[RECORD_REGISTERS];
    unsigned count = header->machine == MACHINE_AARCH64 ? 32 : header->nregisters;

    for (unsigned i = 0; i < count && i < RECORD_REGISTERS; i++)
        registers[i] = header->registers[i];
    dwfl_thread_state_register_pc(thread, header->pc);
    return dwfl_thread_state_registers(thread, 0, count, registers);
}

static int
add_frame(Dwfl_Frame *state, void *argument)
{
    struct dump *self = argument;
    struct frame *frame = &self->frames[self->nframes];
    bool activation;

    if (self->nframes == FRAMES) {
        self->more = true;
        return DWARF_CB_ABORT;
    }
    if (!dwfl_frame_pc(state, &frame->pc, &activation))
        return DWARF_CB_ABORT;
    /* A trap is reported behind the instruction too. */
    bool trap = self->header->signal == SIGTRAP && self->header->code > 0;
    frame->call = self->nframes > 0 ? !activation : trap;
    self->nframes++;
    return DWARF_CB_OK;
}

/* Where what was called is no code (a NULL function pointer), the frame is its caller's: the return
 * address is still on top of the stack. */
static void
leave_nowhere(struct dump *self)
{
    struct record_header *header = self->header;
    struct mapping mapping;
    Dwarf_Word back;

    if (find_mapping(self->maps, header->pc, &mapping) && mapping.rights[2] == 'x')
        return;
    if (header->machine == MACHINE_X86_64 && read_memory(NULL, header->sp, &back, self)) {
        self->frames[self->nframes++].pc = header->pc;
        header->sp = header->registers[7] += sizeof back;
        header->pc = header->registers[16] = back - 1;
    }
    else if (header->machine == MACHINE_AARCH64) {
        self->frames[self->nframes++].pc = header->pc;
        header->pc = header->registers[30] - 1;
    }
}

static void
unwind(Dwfl *dwfl, struct dump *self)
{
    static const Dwfl_Thread_Callbacks callbacks = {
        .next_thread = next_thread,
        .memory_read = read_memory,
        .set_initial_registers = set_registers,
    };

    leave_nowhere(self);
    int first = self->nframes;
    if (dwfl_attach_state(dwfl, NULL, self->header->tid, &callbacks, self))
        dwfl_getthread_frames(dwfl, self->header->tid, add_frame, self);
    if (self->nframes == first && self->header->pc) /* not even the first one */
        self->frames[self->nframes++].pc = self->header->pc;
}

/* ---- names --------------------------------------------------------------------------------- */

/* As it was written in C++; else as it is. Lives until the end of the program. */
static const char *
demangle(const char *name)
{
    static char *(*function)(const char *, char *, size_t *, int *);
    static bool looked;
    char *plain;

    if (!name || name[0] != '_' || name[1] != 'Z')
        return name ? name : "";
    if (!looked) {
        void *library = dlopen("libstdc++.so.6", RTLD_NOW | RTLD_LOCAL);
        looked = true;
        if (library)
            *(void **)&function = dlsym(library, "__cxa_demangle");
    }
    plain = function ? function(name, NULL, NULL, NULL) : NULL;
    return plain ? plain : name;
}

static void
write_frame(Dwfl *dwfl, const struct dump *self, int number)
{
    const struct frame *frame = &self->frames[number];
    Dwarf_Addr pc = frame->pc - frame->call, start = 0;
    Dwfl_Module *module = dwfl_addrmodule(dwfl, pc);
    const char *function = NULL;
    struct mapping mapping = {.path = ""};
    GElf_Sym symbol;
    GElf_Off offset = 0;

    bool mapped = find_mapping(self->maps, pc, &mapping);
    if (!mapped)
        mapping.path_length = 0;
    if (module) {
        function = dwfl_module_addrinfo(module, pc, &offset, &symbol, NULL, NULL, NULL);
        dwfl_module_info(module, NULL, &start, NULL, NULL, NULL, NULL, NULL);
    }
    else if (mapped)
        start = mapping.start - mapping.offset;
    printf("frame\t%d\t%" PRIx64 "\t%" PRIx64 "\t%.*s\t%s\t%" PRIx64 "\n", number, pc,
           mapped ? pc - start : 0, mapping.path_length, mapping.path, demangle(function), offset);
}

static const char *
die_name(Dwarf_Die *die)
{
    Dwarf_Attribute attribute;
    const char *linkage =
        dwarf_formstring(dwarf_attr_integrate(die, DW_AT_linkage_name, &attribute));

    return linkage ? demangle(linkage) : dwarf_diename(die);
}

static void
write_line(int number, const char *function, const char *directory, const char *file, int line)
{
    bool relative = file && *file != '/' && directory;

    if (file)
        printf("line\t%d\t%s\t%s%s%s\t%d\n", number, function ? function : "",
               relative ? directory : "", relative ? "/" : "", file, line);
}

static void
write_lines(Dwfl *dwfl, const struct dump *self, int number)
{
    const struct frame *frame = &self->frames[number];
    Dwarf_Addr pc = frame->pc - frame->call, bias = 0;
    Dwfl_Module *module = dwfl_addrmodule(dwfl, pc);
    Dwfl_Line *source = module ? dwfl_module_getsrc(module, pc) : NULL;
    Dwarf_Die *unit = source ? dwfl_module_addrdie(module, pc, &bias) : NULL;
    Dwarf_Die *scopes = NULL;
    Dwarf_Files *files = NULL;
    size_t nfiles = 0;
    int line = 0;

    if (!source)
        return;
    const char *file = dwfl_lineinfo(source, NULL, &line, NULL, NULL, NULL);
    const char *directory = dwfl_line_comp_dir(source);
    /* The scopes of an address are those of the text where the innermost function was defined; what
     * is wanted are those that it was inlined into. */
    Dwarf_Die *all = NULL;
    int n = unit ? dwarf_getscopes(unit, pc - bias, &all) : 0, first = 0;
    while (first < n && dwarf_tag(&all[first]) != DW_TAG_inlined_subroutine &&
           dwarf_tag(&all[first]) != DW_TAG_subprogram)
        first++;
    n = first < n ? dwarf_getscopes_die(&all[first], &scopes) : 0;
    free(all);
    bool written = false;
    for (int i = 0; i < n; i++) {
        int tag = dwarf_tag(&scopes[i]);
        Dwarf_Attribute attribute;
        Dwarf_Word value;
        if (tag != DW_TAG_inlined_subroutine && tag != DW_TAG_subprogram)
            continue;
        write_line(number, die_name(&scopes[i]), directory, file, line);
        written = true;
        if (tag == DW_TAG_subprogram)
            break;
        /* What it was inlined into is where it was called from. */
        if (!files && dwarf_getsrcfiles(unit, &files, &nfiles) < 0)
            break;
        if (dwarf_formudata(dwarf_attr(&scopes[i], DW_AT_call_file, &attribute), &value) < 0)
            break;
        file = dwarf_filesrc(files, value, NULL, NULL);
        if (dwarf_formudata(dwarf_attr(&scopes[i], DW_AT_call_line, &attribute), &value) == 0)
            line = (int)value;
    }
    if (!written)
        write_line(number, NULL, directory, file, line);
    free(scopes);
}

/* Is that frame in a library, or the program, whose file name begins so? */
static bool
is_in(Dwfl *dwfl, const struct frame *frame, const char *beginning)
{
    Dwfl_Module *module = dwfl_addrmodule(dwfl, frame->pc - frame->call);
    const char *path =
        module ? dwfl_module_info(module, NULL, NULL, NULL, NULL, NULL, NULL, NULL) : NULL;
    const char *slash = path ? strrchr(path, '/') : NULL;

    return slash && strncmp(slash + 1, beginning, strlen(beginning)) == 0;
}

static bool libc_matters;

/* The C library's own debug information is big and compressed: it takes longer to read than all
 * else, and only says something where the library itself is where the process died. */
static int
find_debuginfo(Dwfl_Module *module, void **data, const char *name, Dwarf_Addr base,
               const char *file, const char *link, GElf_Word crc, char **found)
{
    const char *slash = name ? strrchr(name, '/') : NULL;

    if (slash && !libc_matters &&
        (strncmp(slash, "/libc.", 6) == 0 || strncmp(slash, "/libc-", 6) == 0 ||
         strncmp(slash, "/ld-", 4) == 0 || strncmp(slash, "/libpthread", 11) == 0))
        return -1;
    return dwfl_standard_find_debuginfo(module, data, name, base, file, link, crc, found);
}

int
main(void)
{
    static char *debug_path;
    static const Dwfl_Callbacks callbacks = {
        .find_elf = dwfl_linux_proc_find_elf,
        .find_debuginfo = find_debuginfo,
        .debuginfo_path = &debug_path,
    };
    struct dump *self = calloc(1, sizeof *self);
    size_t size;
    unsigned char *data = read_all(&size);

    if (!self || !data || !take(self, data, size)) {
        fprintf(
            stderr,
            "_symbolize: stdin holds no record of a death; started by ipython_isolation only\n");
        return 2;
    }
    struct mapping mapping;
    libc_matters = self->header->kind == RECORD_SIGNAL && self->header->code > 0 &&
                   find_mapping(self->maps, self->header->pc, &mapping) &&
                   memmem(mapping.path, (size_t)mapping.path_length, "/libc", 5);
    unsetenv("DEBUGINFOD_URLS"); /* nothing here may wait for a network */
    char *maps = unchanged(self->maps);
    FILE *file = maps && *maps ? fmemopen(maps, strlen(maps), "r") : NULL;
    Dwfl *dwfl = file ? dwfl_begin(&callbacks) : NULL;
    if (!dwfl)
        return 1;
    dwfl_report_begin(dwfl);
    if (dwfl_linux_proc_maps_report(dwfl, file) != 0 || dwfl_report_end(dwfl, NULL, NULL) != 0)
        return 1;
    unwind(dwfl, self);
    for (int i = 0; i < self->nframes; i++)
        write_frame(dwfl, self, i);
    if (self->more)
        printf("more\n");
    fflush(stdout);
    /* The interpreter's debug information is big, and what is below our own entry nobody asks for.
     */
    int last = 0;
    while (last < self->nframes && is_in(dwfl, &self->frames[last], "_core."))
        last++; /* what exit() ran */
    while (last < self->nframes && !is_in(dwfl, &self->frames[last], "_core."))
        last++;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < last; i++)
            if ((is_in(dwfl, &self->frames[i], "libpython") ||
                 is_in(dwfl, &self->frames[i], "python")) == (pass == 1)) {
                write_lines(dwfl, self, i);
                fflush(stdout);
            }
    _exit(0); /* the parent waits; memory goes by itself */
}
