/* Part of sanitizer builds only. gcc's libubsan next to libasan ignores log_path; this names the
 * file to it, so that tools/test-asan.sh sees what was reported in a child whose stderr nobody
 * reads. */
#include <dlfcn.h>
#include <stdlib.h>

__attribute__((constructor)) static void
send_reports_to_the_log(void)
{
    const char *path = getenv("IPYTHON_ISOLATION_SANITIZER_LOG");
    void *library = path ? dlopen("libubsan.so.1", RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (library == NULL)
        return;
    void (*set_path)(const char *) =
        (void (*)(const char *))dlsym(library, "__sanitizer_set_report_path");
    if (set_path != NULL)
        set_path(path);
}
