// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the blocks are: a block device (bios, completed where they end), a file (page cache), or nowhere (null).
 *
 * Invariants: every path ends in hf_io_done exactly once; memory is taken with GFP_NOIO, so that writing dirty pages back through
 * this very target cannot wait for itself; a read never hands out memory that nobody wrote.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/version.h>

#include "hf.h"

static struct workqueue_struct *hf_store_wq;

int hf_store_init(void)
{
	hf_store_wq = alloc_workqueue("holdfast_store", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return hf_store_wq ? 0 : -ENOMEM;
}

void hf_store_exit(void)
{
	destroy_workqueue(hf_store_wq);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
static int hf_open_block(struct hf_lu *lu)
{
	lu->file = bdev_file_open_by_path(lu->path, BLK_OPEN_READ | BLK_OPEN_WRITE, lu, NULL);
	if (IS_ERR(lu->file)) {
		int rc = PTR_ERR(lu->file);

		lu->file = NULL;
		return rc;
	}
	lu->bdev = file_bdev(lu->file);
	return 0;
}

static void hf_close_block(struct hf_lu *lu)
{
	fput(lu->file);
}
#else
static int hf_open_block(struct hf_lu *lu)
{
	struct block_device *bdev = blkdev_get_by_path(lu->path, FMODE_READ | FMODE_WRITE | FMODE_EXCL, lu);

	if (IS_ERR(bdev))
		return PTR_ERR(bdev);
	lu->bdev = bdev;
	return 0;
}

static void hf_close_block(struct hf_lu *lu)
{
	blkdev_put(lu->bdev, FMODE_READ | FMODE_WRITE | FMODE_EXCL);
}
#endif

int hf_store_open(struct hf_lu *lu)
{
	int rc = 0;

	switch (lu->kind) {
	case HF_STORE_BLOCK:
		rc = hf_open_block(lu);
		if (rc)
			return rc;
		lu->size = bdev_nr_bytes(lu->bdev);
		if (bdev_logical_block_size(lu->bdev) > lu->dev.dev_attrib.hw_block_size) {
			hf_store_close(lu);
			return -EINVAL;
		}
		break;
	case HF_STORE_FILE:
		lu->file = filp_open(lu->path, O_RDWR | O_LARGEFILE, 0);
		if (IS_ERR(lu->file)) {
			rc = PTR_ERR(lu->file);
			lu->file = NULL;
			return rc;
		}
		if (!S_ISREG(file_inode(lu->file)->i_mode)) {
			hf_store_close(lu);
			return -EINVAL;
		}
		lu->size = i_size_read(file_inode(lu->file));
		break;
	default:
		break;
	}
	if (lu->size < lu->dev.dev_attrib.hw_block_size) {
		hf_store_close(lu);
		return -ENOSPC;
	}
	return 0;
}

void hf_store_close(struct hf_lu *lu)
{
	if (lu->bdev)
		hf_close_block(lu);
	else if (lu->file)
		fput(lu->file);
	lu->bdev = NULL;
	lu->file = NULL;
}

/* ---- block device ---- */

struct hf_bios {
	struct se_cmd *cmd;
	struct hf_image *image;
	atomic_t left;
	bool write;
	int error;
};

static void hf_bios_put(struct hf_bios *all)
{
	if (!atomic_dec_and_test(&all->left))
		return;
	hf_io_done(all->cmd, all->image, all->write, all->error);
	kfree(all);
}

static void hf_bio_end(struct bio *bio)
{
	struct hf_bios *all = bio->bi_private;

	if (bio->bi_status)
		WRITE_ONCE(all->error, blk_status_to_errno(bio->bi_status));
	bio_put(bio);
	hf_bios_put(all);
}

static struct hf_bios *hf_bios_new(struct se_cmd *cmd, struct hf_image *image, bool write)
{
	struct hf_bios *all = kzalloc(sizeof(*all), GFP_NOIO);

	if (!all) {
		hf_io_done(cmd, image, write, -ENOMEM);
		return NULL;
	}
	all->cmd = cmd;
	all->image = image;
	all->write = write;
	/* Ours, so that it cannot end before all are submitted. */
	atomic_set(&all->left, 1);
	return all;
}

static struct bio *hf_bio_new(struct hf_lu *lu, struct hf_bios *all, unsigned int pages, blk_opf_t op, sector_t sector)
{
	/* From the block layer's pool: never NULL. */
	struct bio *bio = bio_alloc(lu->bdev, bio_max_segs(pages), op, GFP_NOIO);

	bio->bi_iter.bi_sector = sector;
	bio->bi_private = all;
	bio->bi_end_io = hf_bio_end;
	atomic_inc(&all->left);
	return bio;
}

static void hf_block_rw(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image, u64 sector, u64 bytes, bool write,
			bool durable)
{
	struct hf_bios *all = hf_bios_new(cmd, image, write);
	blk_opf_t op = write ? REQ_OP_WRITE | REQ_SYNC | (durable ? REQ_FUA : 0) : REQ_OP_READ;
	struct scatterlist *sg;
	struct bio *bio = NULL;
	struct blk_plug plug;
	int i;

	if (!all)
		return;
	blk_start_plug(&plug);
	for_each_sg(cmd->t_data_sg, sg, cmd->t_data_nents, i) {
		unsigned int len = min_t(u64, sg->length, bytes);

		if (!len)
			break;
		if (bio && bio_add_page(bio, sg_page(sg), len, sg->offset) != len) {
			submit_bio(bio);
			bio = NULL;
		}
		if (!bio) {
			bio = hf_bio_new(lu, all, cmd->t_data_nents - i, op, sector);
			__bio_add_page(bio, sg_page(sg), len, sg->offset);
		}
		sector += len >> SECTOR_SHIFT;
		bytes -= len;
	}
	if (bio)
		submit_bio(bio);
	blk_finish_plug(&plug);
	if (bytes)
		all->error = -EIO;
	hf_bios_put(all);
}

/* ---- file ---- */

static int hf_file_rw(struct hf_lu *lu, struct se_cmd *cmd, u64 at, u64 bytes, bool write, bool durable)
{
	struct kiocb iocb;
	struct iov_iter iter;
	struct bio_vec *vecs;
	struct scatterlist *sg;
	u64 left = bytes;
	ssize_t done;
	int i, n = 0;

	vecs = kcalloc(cmd->t_data_nents, sizeof(*vecs), GFP_NOIO);
	if (!vecs)
		return -ENOMEM;
	for_each_sg(cmd->t_data_sg, sg, cmd->t_data_nents, i) {
		unsigned int len = min_t(u64, sg->length, left);

		if (!len)
			break;
		vecs[n].bv_page = sg_page(sg);
		vecs[n].bv_len = len;
		vecs[n].bv_offset = sg->offset;
		left -= len;
		n++;
	}
	iov_iter_bvec(&iter, write ? ITER_SOURCE : ITER_DEST, vecs, n, bytes);
	init_sync_kiocb(&iocb, lu->file);
	iocb.ki_pos = at;
	if (durable)
		iocb.ki_flags |= IOCB_DSYNC;
	if (write) {
		file_start_write(lu->file);
		done = lu->file->f_op->write_iter(&iocb, &iter);
		file_end_write(lu->file);
		if (done == bytes && durable)
			done = vfs_fsync_range(lu->file, at, at + bytes - 1, 1) ?: done;
	} else {
		done = lu->file->f_op->read_iter(&iocb, &iter);
	}
	kfree(vecs);
	if (done < 0)
		return done;
	return done == bytes && !left ? 0 : -EIO;
}

/* ---- all ---- */

void hf_store_rw(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image, u64 lba, u32 blocks, bool write, bool durable)
{
	u64 at = lba * image->facts.block_size, bytes = (u64)blocks * image->facts.block_size;

	switch (lu->kind) {
	case HF_STORE_BLOCK:
		hf_block_rw(lu, cmd, image, at >> SECTOR_SHIFT, bytes, write, durable);
		return;
	case HF_STORE_FILE:
		/* LIO calls in a thread that may sleep; the page cache usually does not. */
		hf_io_done(cmd, image, write, hf_file_rw(lu, cmd, at, bytes, write, durable));
		return;
	default:
		if (!write)
			sg_zero_buffer(cmd->t_data_sg, cmd->t_data_nents, bytes, 0);
		hf_io_done(cmd, image, write, 0);
	}
}

void hf_store_flush(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image)
{
	struct hf_bios *all;

	switch (lu->kind) {
	case HF_STORE_BLOCK:
		all = hf_bios_new(cmd, image, true);
		if (!all)
			return;
		submit_bio(hf_bio_new(lu, all, 0, REQ_OP_WRITE | REQ_PREFLUSH, 0));
		hf_bios_put(all);
		return;
	case HF_STORE_FILE:
		hf_io_done(cmd, image, true, vfs_fsync(lu->file, 1));
		return;
	default:
		hf_io_done(cmd, image, true, 0);
	}
}

struct hf_zeroing {
	struct work_struct work;
	struct hf_lu *lu;
	struct se_cmd *cmd;
	struct hf_image *image;
	u64 at;
	u64 bytes;
};

static void hf_zero_work(struct work_struct *work)
{
	struct hf_zeroing *zeroing = container_of(work, struct hf_zeroing, work);
	struct hf_lu *lu = zeroing->lu;
	int rc;

	if (lu->kind == HF_STORE_BLOCK)
		rc = blkdev_issue_zeroout(lu->bdev, zeroing->at >> SECTOR_SHIFT, zeroing->bytes >> SECTOR_SHIFT, GFP_NOIO,
					  0);
	else
		rc = vfs_fallocate(lu->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, zeroing->at, zeroing->bytes);
	hf_io_done(zeroing->cmd, zeroing->image, true, rc);
	kfree(zeroing);
}

void hf_store_zeroes(struct hf_lu *lu, struct se_cmd *cmd, struct hf_image *image, u64 lba, u32 blocks)
{
	struct hf_zeroing *zeroing;

	if (lu->kind == HF_STORE_NULL) {
		hf_io_done(cmd, image, true, 0);
		return;
	}
	zeroing = kzalloc(sizeof(*zeroing), GFP_NOIO);
	if (!zeroing) {
		hf_io_done(cmd, image, true, -ENOMEM);
		return;
	}
	INIT_WORK(&zeroing->work, hf_zero_work);
	zeroing->lu = lu;
	zeroing->cmd = cmd;
	zeroing->image = image;
	zeroing->at = lba * image->facts.block_size;
	zeroing->bytes = (u64)blocks * image->facts.block_size;
	queue_work(hf_store_wq, &zeroing->work);
}
